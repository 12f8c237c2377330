"""Times of quantized_attention; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_quantized_attention = suite("quantized_attention")
