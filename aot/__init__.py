"""Programs compiled ahead of time for accelerators that are not here: `make test-aot`."""

import os

# Before jax starts its backend.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # looks for no CUDA libraries
