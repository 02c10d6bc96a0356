"""Bounds on parameters: members are reflected into them, and a child is clipped to them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax.backend import arithmetic, fixed_point
from egd_optax.base.leaves import flatten, is_masked


class Bounds(NamedTuple):
    """The bounds of a leaf, in its dtype; of a shape that broadcasts to it.

    Attributes:
        low: the least values.
        high: the greatest values.
    """

    low: jax.Array
    high: jax.Array

    def reflected(self, point: jax.Array) -> jax.Array:
        """Points that noise led to, thrown back by the bounds; at most to the other one."""
        wide = arithmetic.widen(point)
        low, high = map(arithmetic.widen, self)
        wide = jnp.where(wide < low, low + (low - wide), wide)
        wide = jnp.where(wide > high, high - (wide - high), wide)
        return self.clipped(arithmetic.cast(wide, point.dtype))

    def clipped(self, point: jax.Array) -> jax.Array:
        """The nearest points within the bounds."""
        return jnp.clip(point, self.low, self.high)


# The bounds of each leaf that mutates; None for a leaf without any.
OfLeaves = tuple[Bounds | None, ...]


# Maps points to points within the bounds: `Bounds.reflected` or `Bounds.clipped`.
Bend = Callable[[Bounds, jax.Array], jax.Array]


def update_within(
    bend: Bend,
    bounds: Bounds,
    params: jax.Array,
    update: jax.Array,
    by: jax.Array,
) -> jax.Array:
    """The update that leads to `params + update + by`, or to what this is bent to.

    Args:
        bend: see `Bend`.
        bounds: of the leaf.
        params: the leaf before the step.
        update: of the base.
        by: noise, or the step to a child.
    """
    moved = arithmetic.add(update, by)
    point = arithmetic.add(params, moved)
    target = bend(bounds, point)
    bent = arithmetic.difference(target, params, update.dtype)
    moved = jnp.where(target == point, moved, bent)
    # The sum of a leaf and an update is rounded: it can be a digit beyond the bound.
    reached = arithmetic.add(params, moved)
    inward = jnp.where(reached < bounds.low, jnp.inf, -jnp.inf).astype(moved.dtype)
    outside = (reached < bounds.low) | (reached > bounds.high)
    return jnp.where(outside, jnp.nextafter(moved, inward), moved)


def check_bounds(bounds: Any) -> None:
    """A pair of pytrees of real numbers; whether they fit the parameters is known later."""
    if bounds is None:
        return
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(
            f"`bounds` must be a pair of numbers or of pytrees, got {bounds!r}: write "
            "`bounds=(-1.0, 1.0)`, or `bounds=(0.0, jnp.inf)`."
        )
    for leaf in jax.tree.leaves(bounds):
        is_array = isinstance(leaf, np.ndarray | np.number | jax.Array)
        if isinstance(leaf, bool) or not (is_array or isinstance(leaf, int | float)):
            raise TypeError(f"`bounds` must hold real numbers or arrays, got {leaf!r}.")
        # A jax array is left alone: no backend starts here.
        if not isinstance(leaf, jax.Array) and np.isnan(leaf).any():
            raise ValueError(f"`bounds` must hold no NaN, got {leaf!r}: write `jnp.inf` for none.")


def bounds_of(bounds: Any, params: optax.Params, positions: Sequence[int]) -> OfLeaves:
    """The bounds of each leaf that mutates, from the argument of `evolve`.

    Raises:
        TypeError: a leaf with bounds is complex.
        ValueError: the bounds do not fit the parameters, or cross, or a leaf of integers has some.
    """
    if bounds is None:
        return (None,) * len(positions)
    sides = [_of_all_leaves(side, params) for side in bounds]
    leaves, _ = flatten(params)
    return tuple(_of_leaf(leaves[at], *(side[at] for side in sides)) for at in positions)


def _of_all_leaves(side: Any, params: optax.Params) -> list[Any]:
    """One side of the bounds for each leaf."""
    try:
        whole = jax.tree.broadcast(side, params, is_leaf=is_masked)
    except ValueError as error:
        raise ValueError(
            f"`bounds` must be two prefixes of the parameters' tree, got {side!r} for parameters "
            f"of structure {jax.tree.structure(params)}: give one number for all leaves, or an "
            "array for each."
        ) from error
    return flatten(whole)[0]


def _of_leaf(leaf: Any, low: Any, high: Any) -> Bounds | None:
    if _is_unbounded(low, high):
        return None
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    what = f"a leaf of {dtype} and shape {shape}"
    if fixed_point.is_integer(dtype):
        raise ValueError(
            f"`bounds` must be infinite for integers, got {low!r} and {high!r} for {what}: pass "
            "`noise=noise.lattice(low, high)`."
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"`bounds` must be those of real numbers, got some for {what}.")
    for side in (low, high):
        if not _fits(jnp.shape(side), shape):
            raise ValueError(
                f"`bounds` must broadcast to their leaf, got shape {jnp.shape(side)} for {what}."
            )
    _check_order(low, high)
    return Bounds(_inward(low, leaf, jnp.inf), _inward(high, leaf, -jnp.inf))


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], whole[::-1], strict=False)
    return len(shape) <= len(whole) and all(own in (1, full) for own, full in pairs)


def _is_unbounded(low: Any, high: Any) -> bool:
    known = not any(isinstance(side, jax.core.Tracer) for side in (low, high))
    return known and bool(np.all(np.isneginf(low)) and np.all(np.isposinf(high)))


def _check_order(low: Any, high: Any) -> None:
    if any(isinstance(side, jax.core.Tracer) for side in (low, high)):
        return
    if not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(
            f"`bounds` must have each lower bound below the upper one, got {low!r} and {high!r}: "
            "a leaf that may not move is excluded by `mutable`."
        )


def _inward(side: Any, leaf: Any, towards: float) -> jax.Array:
    """One side in the dtype of a leaf, rounded into the bounds."""
    dtype = jnp.result_type(leaf)
    wide = jnp.asarray(side, arithmetic.wide_dtype(dtype))
    near = wide.astype(dtype)
    beyond = near.astype(wide.dtype) < wide if towards > 0 else near.astype(wide.dtype) > wide
    near = jnp.where(beyond, jnp.nextafter(near, jnp.asarray(towards, dtype)), near)
    return near.reshape((1,) * (jnp.ndim(leaf) - near.ndim) + near.shape)
