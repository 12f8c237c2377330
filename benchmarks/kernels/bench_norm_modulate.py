"""Times of norm_modulate; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_norm_modulate = suite("norm_modulate")
