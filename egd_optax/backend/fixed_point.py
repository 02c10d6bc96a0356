"""Integers of at most 8 bits, with a fraction of 8 more: sums that are exact wherever XLA is.

An integer leaf and an update, int16, are a number in units of 1/256: 256 * leaf + update, modulo
2**16. Its point is the nearest integer, which has the dtype of the leaf. Its fraction, int8, is how
far it is from there, from -128 to 127. No float rounds a point: it is shifts and sums of integers.
"""

import jax
import jax.numpy as jnp

# Bits of the widest integers that fit, and the dtypes of updates and fractions.
BITS = 8
UPDATE, FRACTION = jnp.dtype(jnp.int16), jnp.dtype(jnp.int8)
_UNIT = 1 << BITS
_HALF = _UNIT // 2


def is_integer(dtype: jnp.dtype) -> bool:
    """Whether a dtype holds integers; bools are none."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def fits(dtype: jnp.dtype) -> bool:
    """Whether a dtype holds integers of so few bits that a fraction can be added."""
    return is_integer(dtype) and jnp.iinfo(dtype).bits <= BITS


def point(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """The nearest integers, in the dtype of the leaf."""
    return (_shifted(leaf, update) >> BITS).astype(leaf.dtype)


def fraction(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """How far the numbers are from their points, int8, in units of 1/256."""
    return ((_shifted(leaf, update) & (_UNIT - 1)) - _HALF).astype(FRACTION)


def update_to(leaf: jax.Array, target: jax.Array, rest: jax.Array) -> jax.Array:
    """The update, int16, that leads from a leaf to a target with a fraction."""
    by = target.astype(jnp.int32) - leaf.astype(jnp.int32)
    return (_UNIT * by + rest.astype(jnp.int32)).astype(UPDATE)


def beside(leaf: jax.Array, base: jax.Array, other: jax.Array, target: jax.Array) -> jax.Array:
    """The update to a target: with the fraction of another one if that has the point of the base.

    Else with the fraction of the base.
    """
    same = point(leaf, other) == point(leaf, base)
    return update_to(leaf, target, jnp.where(same, fraction(leaf, other), fraction(leaf, base)))


def difference(leaf: jax.Array, target: jax.Array) -> jax.Array:
    """The step from a leaf to a target in their dtype: leaf + step wraps, and is the target."""
    return (target.astype(jnp.int32) - leaf.astype(jnp.int32)).astype(leaf.dtype)


def stepped(
    leaf: jax.Array,
    update: jax.Array,
    step: jax.Array,
    uniform: jax.Array,
    bounds: tuple[int, int],
) -> jax.Array:
    """The update, int16, to a number that is a real step farther, within bounds.

    Fractions below 1/256 are rounded at random, so that small steps add up. A step that is not
    finite is none.

    Args:
        leaf: integers.
        update: int16.
        step: floats, in units of the leaf.
        uniform: random numbers from 0 to 1, float32.
        bounds: the least and the greatest integer.
    """
    low, high = (_UNIT * bound for bound in bounds)
    start = (_shifted(leaf, update) - _HALF).astype(jnp.float32)
    by = _UNIT * step.astype(jnp.float32)
    end = jnp.clip(start + jnp.where(jnp.isfinite(by), by, jnp.zeros_like(by)), low, high)
    number = jnp.minimum(jnp.floor(end + uniform).astype(jnp.int32), high)
    return (number - _UNIT * leaf.astype(jnp.int32)).astype(UPDATE)


def rounded(leaf: jax.Array, noise: jax.Array, bounds: tuple[int, int]) -> jax.Array:
    """Integers plus noise, rounded to the nearest integers within bounds, in their dtype."""
    moved = leaf.astype(noise.dtype) + jnp.round(noise)
    return jnp.clip(moved, *bounds).astype(jnp.int32).astype(leaf.dtype)


def _shifted(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """The numbers plus one half, in units of 1/256, int32 of 16 bits."""
    total = _UNIT * leaf.astype(jnp.int32) + update.astype(jnp.int32) + _HALF
    wrapped = jnp.int16 if jnp.issubdtype(leaf.dtype, jnp.signedinteger) else jnp.uint16
    return total.astype(wrapped).astype(jnp.int32)
