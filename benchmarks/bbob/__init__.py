"""The 24 noiseless functions of BBOB with gradients: `python -m benchmarks.bbob`."""
