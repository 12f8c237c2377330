"""Times of qk_norm_rope; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_qk_norm_rope = suite("qk_norm_rope")
