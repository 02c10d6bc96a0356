"""What the optimizer costs, measured: `python -m benchmarks`."""
