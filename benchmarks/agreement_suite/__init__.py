"""What `benchmarks/agreement.py` compares by."""
