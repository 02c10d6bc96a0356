"""The key of a run: an int seed, or a threefry key."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: Any) -> None:
    """An int of 32 bits or a threefry key; makes no array, so starts no backend."""
    fix = 'pass an int, or `jax.random.key(0, impl="threefry2x32")`.'
    if isinstance(key, bool) or not isinstance(key, (numbers.Integral, jax.Array, np.ndarray)):
        raise TypeError(f"`key` must be an int or a jax PRNG key, got {key!r}: {fix}")
    if isinstance(key, numbers.Integral) or (isinstance(key, np.ndarray) and _is_seed(key)):
        if not 0 <= int(key) < 2**32:
            raise ValueError(
                f"`key` must fit into 32 bits, from 0 to 2**32 - 1, got {key!r}: JAX drops the "
                "others, so that different seeds give the same run. Pass another int, or "
                "`jax.random.fold_in(jax.random.key(low), high)`."
            )
        return
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != () or jax.random.key_impl(key) != "threefry2x32":
            raise ValueError(
                f"`key` must be a single threefry key, got {key!r} of shape {key.shape}, "
                f"whose members would differ between the memory modes: {fix}"
            )
    elif not (_is_seed(key) or (key.shape == (2,) and key.dtype == jnp.uint32)):
        raise ValueError(
            f"`key` must be an int, a typed key or raw key data (uint32 [2]), got "
            f"{key.dtype} {list(key.shape)}: {fix}"
        )


def make_key_data(key: Any) -> jax.Array:
    """The raw data of a checked key: uint32 `[2]`, a buffer of its own."""
    if isinstance(key, numbers.Integral) or _is_seed(key):
        key = jax.random.key(key, impl="threefry2x32")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    # The state may be donated, the caller's key may not.
    return jnp.array(key, jnp.uint32, copy=True)


def _is_seed(key: jax.Array | np.ndarray) -> bool:
    return key.shape == () and jnp.issubdtype(key.dtype, jnp.integer)
