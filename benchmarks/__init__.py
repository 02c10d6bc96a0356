"""What the optimizer costs, measured: `python -m benchmarks`.

`aot` and `demo` import this package; it imports neither.
"""
