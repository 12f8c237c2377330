"""Times of quantized_linear; see `suite`."""

from kinema.benchmarks.kernels.suite import suite

test_quantized_linear = suite("quantized_linear")
