"""Times of block_sparse_attention; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_block_sparse_attention = suite("block_sparse_attention")
