"""Benchmarks: scripts and pytest-benchmark suites. Their rows are committed under results/."""
