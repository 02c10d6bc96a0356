"""Rules of operations that rearrange an array, or are linear in it."""

from collections.abc import Iterator, Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax.factored.interpret import Equation, rule
from egd_optax.factored.leaf import (
    Factored,
    base_of,
    each_rank,
    formed,
    is_factored,
    origins_of,
    side_by_side,
)


@rule("copy", "copy_p", "stop_gradient", "name", "optimization_barrier")
def _identity(equation: Equation, *operands: Any) -> Sequence[Any]:
    del equation
    return operands


@rule("sharding_constraint")
def _sharding_constraint(equation: Equation, leaf: Factored) -> Sequence[Any]:
    # Factors are small, and have other axes than the constraint is of.
    (base,) = equation.bind(leaf.base)
    return [leaf.like(base, leaf.left, leaf.right)]


@rule("pvary", "pcast")
def _pvary(equation: Equation, leaf: Factored) -> Sequence[Any]:
    base, left, right = (equation.bind(part)[0] for part in (leaf.base, *leaf.factors))
    return [leaf.like(base, left, right)]


@rule("convert_element_type")
def _convert_element_type(equation: Equation, leaf: Factored) -> Sequence[Any] | None:
    dtype = equation.params["new_dtype"]
    # To integers, and to floats of a few digits, is to round: a fitness that is to see rounded
    # parameters must get the rounded sum, which is no sum of rounded parts.
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        return None
    return [leaf.like(leaf.base.astype(dtype), leaf.left.astype(dtype), leaf.right.astype(dtype))]


@rule("neg")
def _neg(equation: Equation, leaf: Factored) -> Sequence[Any]:
    del equation
    return [leaf.like(-leaf.base, -leaf.left, leaf.right)]


@rule("mul", "div")
def _mul(equation: Equation, left: Any, right: Any) -> Sequence[Any] | None:
    """Multiplies or divides by one number, or by one for each index of an axis of a factor."""
    leaf, by = (left, right) if is_factored(left) else (right, left)
    if is_factored(by) or (equation.primitive.name == "div" and leaf is right):
        return None
    sides = np.shape(by) or (1,) * leaf.ndim
    if np.broadcast_shapes(sides, leaf.shape) != leaf.shape:
        return None
    axes = {axis for axis, side in enumerate(sides) if side != 1}
    at = next((at for at, one in enumerate(leaf.factors) if axes <= leaf.owned(one)), None)
    if at is None:
        return None
    (base,) = equation.bind(leaf.base, by)
    factors = list(leaf.factors)
    scale = jnp.reshape(by, (*sides, 1)).astype(leaf.dtype)
    factors[at] = factors[at] / scale if equation.primitive.name == "div" else factors[at] * scale
    return [leaf.like(base, factors[0], factors[1])]


@rule("add", "sub", "add_any")
def _add(equation: Equation, left: Any, right: Any) -> Sequence[Any] | None:
    """Adds the ranks of two leaves; another operand, frozen weights for example, moves the base."""
    shape = np.broadcast_shapes(np.shape(left), np.shape(right))
    for side in (left, right):
        if is_factored(side) and (side.is_spread or side.shape != shape):
            return equation.bind(formed(left), formed(right))  # a bias
    (base,) = equation.bind(base_of(left), base_of(right))
    if not is_factored(right):
        return [left.like(base, left.left, left.right)]
    theirs = -right.left if equation.primitive.name == "sub" else right.left
    if not is_factored(left):
        return [right.like(base, theirs, right.right)]
    of_left = side_by_side([left.left, theirs])
    of_right = side_by_side([left.right, right.right])
    return [Factored(base, of_left, of_right, origins_of(left, right))]


@rule("transpose")
def _transpose(equation: Equation, leaf: Factored) -> Sequence[Any]:
    return [leaf.each(lambda part: lax.transpose(part, equation.params["permutation"]))]


@rule("squeeze")
def _squeeze(equation: Equation, leaf: Factored) -> Sequence[Any]:
    return [leaf.each(lambda part: lax.squeeze(part, equation.params["dimensions"]))]


@rule("rev")
def _rev(equation: Equation, leaf: Factored) -> Sequence[Any]:
    axes = equation.params["dimensions"]  # along a side of one it changes nothing
    return [leaf.each(lambda part: lax.rev(part, axes))]


@rule("broadcast_in_dim")
def _broadcast_in_dim(equation: Equation, leaf: Factored) -> Sequence[Any]:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]

    def widened(part: jax.Array) -> jax.Array:
        sides = [1] * len(shape)
        for axis, side in zip(axes, part.shape, strict=True):
            sides[axis] = side
        return lax.broadcast_in_dim(part, sides, axes)

    (base,) = equation.bind(leaf.base)
    left, right = (each_rank(widened, factor) for factor in leaf.factors)
    return [leaf.like(base, left, right)]


@rule("reshape")
def _reshape(equation: Equation, leaf: Factored) -> Sequence[Any] | None:
    """Axes that are merged or split must belong to the same factors."""
    if equation.params.get("dimensions") is not None:
        return None
    sizes = equation.params["new_sizes"]
    new_sides: list[list[int]] = [[] for _ in leaf.factors]
    for old, new in _reshaped_groups(leaf.shape, sizes):
        varying = [axis for axis in old if leaf.shape[axis] != 1]
        for sides, factor in zip(new_sides, leaf.factors, strict=True):
            owns = {factor.shape[axis] != 1 for axis in varying}
            if len(owns) > 1:
                return None
            sides.extend(sizes[axis] if owns == {True} else 1 for axis in new)
    (base,) = equation.bind(leaf.base)
    left, right = (
        factor.reshape(*sides, leaf.rank)
        for factor, sides in zip(leaf.factors, new_sides, strict=True)
    )
    return [leaf.like(base, left, right)]


def _reshaped_groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The fewest axes that go together from one shape to the other: `[a, b, c]` to `[ab, c]`."""
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        before = after = 1
        if i < len(old):
            before, i = old[i], i + 1
        if j < len(new):
            after, j = new[j], j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        yield range(start_i, i), range(start_j, j)


@rule("reduce_sum")
def _reduce_sum(equation: Equation, leaf: Factored) -> Sequence[Any] | None:
    """Sums over axes that the two factors do not share."""
    axes = equation.params["axes"]
    left, right = (leaf.owned(factor) for factor in leaf.factors)
    if left & right & set(axes):
        return None
    (base,) = equation.bind(leaf.base)
    # A side that no factor has is summed as often as it is long.
    times = math.prod(leaf.shape[axis] for axis in axes if axis not in left | right)
    factors = [jnp.sum(factor, axes) for factor in leaf.factors]
    return [leaf.like(base, times * factors[0], factors[1])]
