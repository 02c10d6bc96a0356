"""Standard normal numbers as a function of a key and a counter.

Any part of any draw can be made again, anywhere and in any order. Threefry is written out here. On
a CPU JAX lowers it to a loop over its rounds. Each round then writes and reads several arrays of
the size of the draw. `benchmarks/draws.py` measures both.

Source: Salmon et al., `Parallel Random Numbers: As Easy as 1, 2, 3
<https://doi.org/10.1145/2063384.2063405>`_, 2011.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax.backend import xla

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encrypts counters by Threefry-2x32-20.

    Args:
        key: uint32 `[..., 2]`; its two words broadcast against the counters.
        high: upper halves of the counters, uint32.
        low: lower halves, uint32.

    Returns:
        Both halves of the results, uint32.
    """
    keys = (key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ jnp.uint32(_PARITY))
    high, low = high + keys[0], low + keys[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            high = high + low
            low = high ^ ((low << by) | (low >> (32 - by)))
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low


def derive(key: jax.Array, high: jax.typing.ArrayLike, low: jax.typing.ArrayLike) -> jax.Array:
    """Returns a new key, uint32 `[..., 2]`, made of a key and two numbers."""
    words = (jnp.asarray(word).astype(jnp.uint32) for word in (high, low))
    # The same piece of program for each key: XLA would fuse it with the next one.
    return xla.barrier(jnp.stack(threefry(key, *words), -1))


def uniforms(key: jax.Array, draw: jax.Array, entry: jax.Array) -> jax.Array:
    """Returns numbers from 0 to 1, 1 excluded, for the counters; arguments as for `normals`."""
    high, low = threefry(key, jnp.broadcast_to(draw.astype(jnp.uint32), entry.shape), entry)
    digits = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)  # the float32 numbers in [1, 2)
    return lax.bitcast_convert_type(digits, jnp.float32) - 1


def normals(key: jax.Array, draw: jax.Array, entry: jax.Array) -> jax.Array:
    """Returns standard normal numbers for the counters (draw, entry).

    Args:
        key: uint32 `[..., 2]`.
        draw: the number of the draw, an integer `[]`.
        entry: the numbers of the entries, uint32 `[...]`.

    Returns:
        float32 like `entry`, broadcast against the key.
    """
    uniform = uniforms(key, draw, entry)
    # Numbers, no arrays: XLA would compute an array of the bound outside of a loop that draws.
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(uniform * (1 - least) + least, least)
    return np.float32(math.sqrt(2)) * lax.erf_inv(uniform)


def normals_of(
    key: jax.Array, draw: jax.Array, start: int, shape: tuple[int, ...], sharding: Any = None
) -> jax.Array:
    """Returns the standard normal numbers of one array; arguments as for `numbers_of`."""
    return numbers_of(normals, key, draw, start, shape, sharding)


def numbers_of(
    numbers: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    draw: jax.Array,
    start: int,
    shape: tuple[int, ...],
    sharding: Any = None,
) -> jax.Array:
    """Returns the random numbers of one array, from its entry `start` on.

    Args:
        numbers: `normals` or `uniforms`.
        key: uint32 `[2]`.
        draw: the number of the draw, an integer `[]`.
        start: the number of the first entry.
        shape: of the array.
        sharding: of the array, on a mesh of explicit axes.
    """
    # Zero, from the draw: XLA would compute the numbers of the entries before a loop that draws,
    # and hold them.
    zero, draw = xla.no_hoist(jnp.uint32(0), draw)
    if math.prod(shape) > 2**31:  # a counter of 32 bits would come round: a key for each index
        keys = derive(key, 1, jnp.arange(shape[0], dtype=jnp.uint32))
        key = keys.reshape(shape[0], *(1,) * (len(shape) - 1), 2)
        return numbers(key, draw, start + _entries(shape, 1, sharding, zero))
    return numbers(key, draw, start + _entries(shape, 0, sharding, zero))


def _entries(shape: tuple[int, ...], axes_behind: int, sharding: Any, zero: jax.Array) -> jax.Array:
    """The numbers of the entries behind some axes; no reshape, so that XLA divides them."""
    entries = jnp.zeros(shape, jnp.uint32, out_sharding=sharding)
    for axis in range(axes_behind, len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        index = lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        entries += stride * (index + zero)
    return entries
