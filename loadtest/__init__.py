"""Benchmarks and load tests. Run from the root of the repository; nothing here is installed."""
