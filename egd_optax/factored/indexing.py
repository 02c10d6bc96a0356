"""Rules of operations that take a part of an array, or put parts together."""

from collections.abc import Sequence
import itertools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.factored.interpret import Equation, rule
from egd_optax.factored.leaf import (
    Factored,
    each_rank,
    is_factored,
    origins_of,
    side_by_side,
)

# Joined leaves have the sum of their ranks; with more it is cheaper to form them.
_MOST_RANKS = 8


@rule("slice")
def _slice(equation: Equation, leaf: Factored) -> Sequence[Any]:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * leaf.ndim

    def cut(part: jax.Array) -> jax.Array:
        whole = [axis for axis in range(leaf.ndim) if part.shape[axis] != leaf.shape[axis]]
        return lax.slice(
            part,
            _with(starts, whole, 0),
            _with(limits, whole, 1),
            _with(strides, whole, 1),
        )

    return [leaf.each(cut)]


@rule("dynamic_slice")
def _dynamic_slice(equation: Equation, leaf: Factored, *starts: Any) -> Sequence[Any] | None:
    sizes = equation.params["slice_sizes"]
    if not is_factored(leaf) or any(map(is_factored, starts)):
        return None

    def cut(part: jax.Array) -> jax.Array:
        whole = [axis for axis in range(leaf.ndim) if part.shape[axis] != leaf.shape[axis]]
        # Of the dtype that the others have, which XLA asks for.
        first = jnp.zeros_like(starts[0])
        at = [first if axis in whole else start for axis, start in enumerate(starts)]
        return lax.dynamic_slice(part, at, _with(sizes, whole, 1))

    return [leaf.each(cut)]


@rule("split")
def _split(equation: Equation, leaf: Factored) -> Sequence[Any]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]

    def parts(part: jax.Array) -> Sequence[jax.Array]:
        if part.shape[axis] != leaf.shape[axis]:
            return [part] * len(sizes)
        return lax.split(part, sizes, axis)

    pieces = zip(parts(leaf.base), parts(leaf.left), parts(leaf.right), strict=True)
    return [leaf.like(*piece) for piece in pieces]


@rule("concatenate")
def _concatenate(equation: Equation, *operands: Any) -> Sequence[Any] | None:
    """Along an axis a factor has zeros but for its own part; the ranks add up."""
    if not all(map(is_factored, operands)):
        return None
    leaves: Sequence[Factored] = operands
    if sum(leaf.rank for leaf in leaves) > _MOST_RANKS:
        return None
    axis = equation.params["dimension"]
    total = sum(leaf.shape[axis] for leaf in leaves)
    ends = list(itertools.accumulate(leaf.shape[axis] for leaf in leaves))

    def padded(leaf: Factored, end: int) -> tuple[jax.Array, ...]:
        length = leaf.shape[axis]
        # One factor has to be zero in all other parts; the other one may have anything there.
        zero = leaf.right if leaf.owned(leaf.right) - leaf.owned(leaf.left) >= {axis} else leaf.left

        def whole(factor: jax.Array) -> jax.Array:
            if factor is not zero and axis not in leaf.owned(factor):
                return factor
            sides = *factor.shape[:axis], length, *factor.shape[axis + 1 :]
            pads = [(0, 0, 0)] * factor.ndim
            pads[axis] = end - length, total - end, 0
            return lax.pad(jnp.broadcast_to(factor, sides), jnp.zeros([], factor.dtype), pads)

        return tuple(map(whole, leaf.factors))

    lefts, rights = zip(*map(padded, leaves, ends), strict=True)
    (base,) = equation.bind(*(leaf.base for leaf in leaves))
    return [Factored(base, side_by_side(lefts), side_by_side(rights), origins_of(*leaves))]


@rule("gather")
def _gather(equation: Equation, leaf: Any, indices: Any) -> Sequence[Any] | None:
    """Takes rows, as of an embedding, from the base and from the factor that has them."""
    if not is_factored(leaf) or is_factored(indices):
        return None
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    cut = {*numbers.start_index_map, *gone}
    cut |= {axis for axis, size in enumerate(sizes) if size != leaf.shape[axis]}
    owns = [cut <= leaf.owned(factor) for factor in leaf.factors]
    if any(
        cut & leaf.owned(one) and not all_ for one, all_ in zip(leaf.factors, owns, strict=True)
    ):
        return None  # an index reaches into several axes, and a factor has only some of them
    # Out of bounds the base has the value that fills it, and noise is zero.
    fills = equation.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    if fills and not any(owns):
        return None
    changes = {"fill_value": 0} if fills else {}
    (base,) = equation.bind(leaf.base, indices)

    def gathered(factor: jax.Array) -> jax.Array:
        own = leaf.owned(factor)
        if cut & own:
            own_sizes = tuple(size if axis in own else 1 for axis, size in enumerate(sizes))
            return each_rank(
                lambda part: equation.bind(part, indices, slice_sizes=own_sizes, **changes)[0],
                factor,
            )
        sides = [1] * base.ndim
        kept = (axis for axis in range(leaf.ndim) if axis not in gone)
        for at, axis in zip(numbers.offset_dims, kept, strict=True):
            sides[at] = factor.shape[axis]
        return factor.reshape(*sides, leaf.rank)

    # Gathered rows differ between members, and nothing more can be shared: formed from here on.
    return [leaf.like(base, gathered(leaf.left), gathered(leaf.right)).form()]


def _with(values: Sequence[int], axes: Sequence[int], value: int) -> list[int]:
    """The values, with another one at some axes."""
    return [value if axis in axes else one for axis, one in enumerate(values)]
