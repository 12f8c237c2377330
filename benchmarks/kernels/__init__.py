"""Benchmarks of the kernels: a pytest-benchmark suite for each, and one script for a whole GPU."""
