"""From noise to latents: the step, its solvers, guidance, and the tables they read."""
