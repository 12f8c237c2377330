"""Times of gate_residual; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_gate_residual = suite("gate_residual")
