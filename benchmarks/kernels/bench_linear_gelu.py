"""Times of linear_gelu; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_linear_gelu = suite("linear_gelu")
