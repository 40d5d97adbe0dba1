"""The kernel benchmark suite: what `benchmarks/kernels.py` runs."""
