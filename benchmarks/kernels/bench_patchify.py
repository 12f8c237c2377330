"""Times of patchify; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_patchify = suite("patchify")
