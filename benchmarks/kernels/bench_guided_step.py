"""Times of guided_step; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_guided_step = suite("guided_step")
