"""Times of norm_silu; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_norm_silu = suite("norm_silu")
