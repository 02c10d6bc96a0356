"""JAX's threefry generator, the same bits, in a form that XLA computes while it draws.

On a CPU JAX lowers threefry to a loop over its rounds, which writes and reads several
arrays of the size of the draw in each of them. That keeps programs small that draw at many
places. A cycle draws at few, in loops, and noise is what it costs: with the rounds written
out XLA keeps them in registers, and takes less time to compile, see `benchmarks/draws.py`.
On accelerators JAX writes them out too.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._jax import define_prng_impl, threefry_prng_impl

# The constants of Threefry-2x32-20: Salmon et al., `Parallel Random Numbers: As Easy as
# 1, 2, 3 <https://doi.org/10.1145/2063384.2063405>`_, 2011.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def wrap_key_data(key_data: jax.Array) -> jax.Array:
    """A key for `jax.random` from raw data, uint32 `[2]`; draws what a threefry key draws.

    Whatever `jax_threefry_partitionable` says: the numbers do not depend on how they are
    divided over devices.
    """
    key: jax.Array = jax.random.wrap_key_data(key_data, impl=_IMPLEMENTATION)
    return key


def block(
    key: jax.Array | tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Encrypts counters.

    Args:
        key: uint32 `[2]`, or its two words, which broadcast against the counters.
        high: the upper halves of the counters, uint32 `[...]`.
        low: the lower halves, likewise.

    Returns:
        Both halves of what each counter becomes, uint32 `[...]`.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    high, low = high + keys[0], low + keys[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            high = high + low
            low = high ^ ((low << by) | (low >> (32 - by)))
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width != 32 or math.prod(shape) >= 2**32:  # a count may take both of its halves
        bits: jax.Array = threefry_prng_impl.random_bits(key, bit_width, shape)
        return bits
    high, low = block(key, *_counters(shape))
    return high ^ low


def _fold_in(key: jax.Array, data: jax.typing.ArrayLike) -> jax.Array:
    # What JAX makes of a seed of 32 bits is a counter.
    counter = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(block(key, jnp.zeros_like(counter), counter), axis=-1)


def folded_in(key_data: jax.Array, *numbers: jax.typing.ArrayLike) -> jax.Array:
    """Folds numbers into raw keys one after another, as `jax.random.fold_in` does.

    In a loop, for XLA would compile the generator as often as there are numbers.

    Args:
        key_data: a raw key, uint32 `[2]`.
        *numbers: integers, which broadcast to one shape, `[...]`.

    Returns:
        uint32 `[..., 2]`.
    """
    cases = jnp.broadcast_arrays(*(jnp.asarray(number).astype(jnp.uint32) for number in numbers))
    fold_in = jnp.vectorize(_fold_in, signature="(w),()->(w)")

    def fold(at: jax.Array, keys: jax.Array) -> jax.Array:
        folded: jax.Array = fold_in(keys, lax.select_n(at, *cases))
        return folded

    zeros = jnp.zeros_like(sum(cases))  # vary over the devices of a mapped axis as a number does
    keys: jax.Array = lax.fori_loop(
        jnp.int32(0), jnp.int32(len(cases)), fold, key_data + zeros[..., None]
    )
    return keys


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(block(key, *_counters(shape)), axis=-1)


def _counters(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The position of every entry, in row-major order, in two halves."""
    low = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        low += jnp.uint32(stride) * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return jnp.zeros(shape, jnp.uint32), low


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_written_out",
    tag="fry",
)


def normal_rows(keys: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """Rows of what `jax.random.normal` draws, each from a key and a counter of its own.

    Written out, with numbers for the bounds of the uniform numbers: XLA would compute an array of
    such a bound before a loop that draws, in some places and not in others, and compile either.

    Args:
        keys: raw keys, uint32 `[rows, 2]`.
        starts: the counters of the first number in each row, uint32 `[rows]`.
        length: numbers in a row.

    Returns:
        float32 `[rows, length]`.
    """
    counters = starts[:, None] + jnp.arange(length, dtype=jnp.uint32)
    high, low = block((keys[:, :1], keys[:, 1:]), jnp.zeros_like(counters), counters)
    # Digits behind a one, in [1, 2); then uniform in (-1, 1).
    digits = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)
    uniform = lax.bitcast_convert_type(digits, jnp.float32) - 1
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(uniform * (1 - least) + least, least)
    return np.float32(math.sqrt(2)) * lax.erf_inv(uniform)
