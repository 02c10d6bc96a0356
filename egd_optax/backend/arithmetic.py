"""Sums and differences that are the same to the bit wherever XLA computes them."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import fixed_point, xla


def wide_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype that arrays of some dtypes are computed in: float32 or wider; holds all exactly."""
    return functools.reduce(jnp.promote_types, map(_at_least_float32, dtypes))


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that many arrays of a dtype are added up in: at least that of a Python float."""
    return jnp.promote_types(wide_dtype(dtype), jnp.result_type(float))


def real_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The wide dtype of the real part of a dtype."""
    return jnp.finfo(wide_dtype(dtype)).dtype


def widen(leaf: jax.typing.ArrayLike) -> jax.Array:
    """The same values in the dtype that they are computed in."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(wide_dtype(leaf.dtype))


def cast(wide: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The values in a dtype; XLA may leave out a plain cast to fewer digits."""
    if fixed_point.is_integer(dtype):
        return jnp.round(wide).astype(dtype)
    return xla.round_to(wide, dtype).astype(dtype)


def add(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """The sum in the dtype of the leaf, as `optax.apply_updates` computes it.

    Integers with an update in int16 give the point, see `fixed_point`.
    """
    if _in_fixed_point(leaf, update):
        return fixed_point.point(leaf, update)
    wide = wide_dtype(leaf.dtype, update.dtype)
    total = xla.by_parts(jnp.add, leaf.astype(wide), update.astype(wide))
    return cast(total, leaf.dtype)


def difference(target: jax.Array, leaf: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The update of a dtype that leads from a leaf to a target, or as near as it leads."""
    wide = wide_dtype(target.dtype, dtype)
    by = xla.by_parts(jnp.subtract, target.astype(wide), leaf.astype(wide))
    return cast(by, dtype)


def reach(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """The point that an update leads to from a leaf.

    `add(leaf, difference(point, leaf, update.dtype))` is that point again, to the bit.
    """
    point = add(leaf, update)
    if _in_fixed_point(leaf, update):
        return point
    if update.dtype != wide_dtype(update.dtype):
        # An update of few digits that leads from the leaf to this point may be another one, and
        # lead elsewhere. The second point is fixed.
        point = add(leaf, difference(point, leaf, update.dtype))
    return point


def pairwise_sum(terms: jax.Array) -> jax.Array:
    """The sums over the last axis of a matrix, whose length is a power of two, in a fixed order.

    A reduction of XLA adds in an order that depends on the other axis. Here each trip of a loop
    adds entry by entry: first parts of the length eight, and then halves.
    """
    length = terms.shape[1]
    width = min(length, 8)

    def add(trip: jax.Array, total: jax.Array) -> jax.Array:
        return total + lax.dynamic_slice_in_dim(terms, trip * width, width, 1)

    def fold(trip: jax.Array, total: jax.Array) -> jax.Array:
        twice = jnp.concatenate([total, total], 1)
        return total + lax.dynamic_slice_in_dim(twice, width >> (trip + 1), width, 1)

    total = xla.loop(1, length // width, add, terms[:, :width])
    return xla.loop(0, width.bit_length() - 1, fold, total)[:, 0]


def _in_fixed_point(leaf: jax.Array, update: jax.Array) -> bool:
    return fixed_point.is_integer(leaf.dtype) and bool(update.dtype == fixed_point.UPDATE)


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    is_wide = not fixed_point.is_integer(dtype) and jnp.finfo(dtype).bits >= 32
    return dtype if is_wide else jnp.dtype(jnp.float32)
