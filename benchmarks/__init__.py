"""Benchmarks of llmkit against what it wraps; `python -m benchmarks` or `make bench` runs them."""
