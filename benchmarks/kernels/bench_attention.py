"""Times of attention; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_attention = suite("attention")
