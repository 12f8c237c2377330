"""Times of unpatchify; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_unpatchify = suite("unpatchify")
