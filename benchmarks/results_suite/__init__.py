"""The measurements behind docs/results.md: what `benchmarks/results.py` runs and writes."""
