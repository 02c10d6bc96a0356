"""Rules of products: with the base once for all members, and with the factors for each."""

from collections.abc import Sequence
import functools
import math
import string
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax.factored.interpret import Equation, rule
from egd_optax.factored.leaf import Factored, base_of, is_factored, origins_of

# Products of columns and rows are added one by one, within what adds them to the product with the
# base; more of them are one matrix product.
_FEW_RANKS = 4
_RANK = "r"


@rule("dot_general")
def _dot_general(equation: Equation, lhs: Any, rhs: Any) -> Sequence[Any]:
    """`x (W + A B^T) = x W + (x A) B^T`, for any axes and on either side."""
    if is_factored(lhs) and is_factored(rhs):
        both = _both_sides(equation, lhs, rhs)
        if both is not None:
            return both
        lhs, rhs = (
            (equation.formed(lhs), rhs) if lhs.size < rhs.size else (lhs, equation.formed(rhs))
        )
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    letters = iter(string.ascii_letters.replace(_RANK, ""))
    lhs_axes = [next(letters) for _ in range(lhs.ndim)]
    rhs_axes = [next(letters) for _ in range(rhs.ndim)]
    for ours, theirs in zip((*lhs_sum, *lhs_batch), (*rhs_sum, *rhs_batch), strict=True):
        rhs_axes[theirs] = lhs_axes[ours]
    summed = {lhs_axes[axis] for axis in lhs_sum}
    out = [
        *(lhs_axes[axis] for axis in lhs_batch),
        *(name for at, name in enumerate(lhs_axes) if at not in (*lhs_sum, *lhs_batch)),
        *(name for at, name in enumerate(rhs_axes) if at not in (*rhs_sum, *rhs_batch)),
    ]
    (base,) = equation.bind(base_of(lhs), base_of(rhs))
    leaf, axes, x, x_axes = (
        (lhs, lhs_axes, rhs, rhs_axes) if is_factored(lhs) else (rhs, rhs_axes, lhs, lhs_axes)
    )
    noise = _with_factors(
        leaf, axes, x, x_axes, summed, out, base.dtype, equation.params["precision"]
    )
    return [base + noise.astype(base.dtype)]


def _with_factors(
    leaf: Factored,
    axes: Sequence[str],
    x: jax.Array,
    x_axes: Sequence[str],
    summed: set[str],
    out: Sequence[str],
    dtype: jnp.dtype,
    precision: Any,
) -> jax.Array:
    """The product with the factors, first with the factor that has more to sum over.

    Args:
        leaf: the factored operand.
        axes: a name for each of its axes.
        x: the other operand.
        x_axes: a name for each of its axes.
        summed: the names of the axes that are summed over.
        out: the names of the axes of the result, in their order.
        dtype: of the result.
        precision: of the products.
    """
    pairs = [_named(leaf, factor, axes) for factor in leaf.factors]
    pairs.sort(key=lambda pair: -math.prod(_sides(leaf, axes, summed & set(pair[1]))))
    (first, first_axes), (second, second_axes) = pairs
    # The axes of the operand and of the first factor that the second product still needs.
    middle = [name for name in x_axes if name not in summed or name in second_axes]
    middle += [name for name in first_axes if name not in middle and name not in summed]
    product = functools.partial(_einsum, dtype=dtype, precision=precision)
    if leaf.rank == 1:
        once = product(x, x_axes, first[..., 0], first_axes, middle)
        if summed & set(second_axes):
            return product(once, middle, second[..., 0], second_axes, out)
        return _placed(once, middle, out) * _placed(second[..., 0], second_axes, out)
    once = product(x, x_axes, first, [*first_axes, _RANK], [*middle, _RANK])
    if summed & set(second_axes) or leaf.rank > _FEW_RANKS:
        return product(once, [*middle, _RANK], second, [*second_axes, _RANK], out)
    return functools.reduce(
        jnp.add,
        (
            _placed(once[..., at], middle, out) * _placed(second[..., at], second_axes, out)
            for at in range(leaf.rank)
        ),
    )


def _named(leaf: Factored, factor: jax.Array, axes: Sequence[str]) -> tuple[jax.Array, list[str]]:
    """A factor without the axes along which it is the same, and the names of the others."""
    own = sorted(leaf.owned(factor))
    return factor.reshape(*(leaf.shape[axis] for axis in own), leaf.rank), [axes[at] for at in own]


def _sides(leaf: Factored, axes: Sequence[str], names: set[str]) -> list[int]:
    return [side for side, name in zip(leaf.shape, axes, strict=True) if name in names]


def _einsum(
    left: jax.Array,
    left_axes: Sequence[str],
    right: jax.Array,
    right_axes: Sequence[str],
    out: Sequence[str],
    *,
    dtype: jnp.dtype,
    precision: Any,
) -> jax.Array:
    # Always a matrix product: XLA:CPU has summed a product of entries in its place wrongly.
    common = jnp.promote_types(left.dtype, right.dtype)
    result: jax.Array = jnp.einsum(
        f"{''.join(left_axes)},{''.join(right_axes)}->{''.join(out)}",
        left.astype(common),
        right.astype(common),
        precision=precision,
        preferred_element_type=dtype,
    )
    return result


def _placed(array: jax.Array, axes: Sequence[str], out: Sequence[str]) -> jax.Array:
    """The array with the axes of the result, of size one where it has none."""
    order = sorted(range(len(axes)), key=lambda at: out.index(axes[at]))
    missing = [at for at, name in enumerate(out) if name not in axes]
    return jnp.expand_dims(lax.transpose(array, order), missing)


def _both_sides(equation: Equation, lhs: Factored, rhs: Factored) -> Sequence[Any] | None:
    """`(V + A B^T) (W + C D^T) = V W + A (B^T (W + C D^T)) + (V C) D^T`: the ranks add up.

    Works for two matrices, in whatever order their axes are.
    """
    (lhs_sum, rhs_sum), (lhs_batch, _) = equation.params["dimension_numbers"]
    if lhs_batch or len(lhs_sum) != 1 or lhs.ndim != 2 or rhs.ndim != 2:
        return None
    ours, theirs = _columns(lhs, lhs_sum[0]), _columns(rhs, rhs_sum[0])
    if ours is None or theirs is None:
        return None
    (base,) = equation.bind(lhs.base, rhs.base)
    product = functools.partial(
        jnp.tensordot,
        precision=equation.params["precision"],
        preferred_element_type=base.dtype,
    )
    (a, b), (d, c) = ours, theirs
    left = product(lhs.base, c, (lhs_sum, (0,)))
    right = product(rhs.base, b, (rhs_sum, (0,))) + product(d, product(c, b, ((0,), (0,))), 1)
    left = jnp.concatenate([a.astype(base.dtype), left], -1)
    right = jnp.concatenate([right, d.astype(base.dtype)], -1)
    return [Factored(base, left[:, None], right[None], origins_of(lhs, rhs))]


def _columns(leaf: Factored, summed: int) -> tuple[jax.Array, jax.Array] | None:
    """The factors of a matrix, `[side, r]`, the one with the axis that is summed over last."""
    for free, other in (leaf.factors, leaf.factors[::-1]):
        if summed not in leaf.owned(free) and 1 - summed not in leaf.owned(other):
            return (
                jnp.broadcast_to(free.squeeze(summed), (leaf.shape[1 - summed], leaf.rank)),
                jnp.broadcast_to(other.squeeze(1 - summed), (leaf.shape[summed], leaf.rank)),
            )
    return None


@rule("conv_general_dilated")
def _conv_general_dilated(equation: Equation, x: Any, kernel: Any) -> Sequence[Any] | None:
    """First A across channels, for each place in the window; then one sum over these for all.

    A kernel for each member would be a convolution in groups, which is slow. The sum is a
    convolution with the same kernel, of zeros and ones, for all members.
    """
    params = equation.params
    numbers = params["dimension_numbers"]
    outputs, inputs, *window = numbers.rhs_spec
    if is_factored(x) or not is_factored(kernel):
        return None
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    if not kernel.owned(kernel.right) <= {outputs} or outputs in kernel.owned(kernel.left):
        return None
    (base,) = equation.bind(x, kernel.base)
    places = math.prod(kernel.shape[axis] for axis in window)
    sides = [1 if axis == outputs else side for axis, side in enumerate(kernel.shape)]
    left = jnp.broadcast_to(kernel.left, (*sides, kernel.rank)).squeeze(outputs)
    # As a matrix: input channels, and for each place and rank a column.
    order = [sorted([inputs, *window]).index(axis) for axis in (inputs, *window)]
    columns = lax.transpose(left, (*order, left.ndim - 1))
    columns = columns.reshape(kernel.shape[inputs], places * kernel.rank)
    channel = numbers.lhs_spec[1]
    common = jnp.promote_types(x.dtype, columns.dtype)
    across = jnp.tensordot(
        x.astype(common), columns.astype(common), ((channel,), (0,)), precision=params["precision"]
    )
    across = jnp.moveaxis(across, -1, channel)
    picks = np.eye(places * kernel.rank, dtype=np.float32)
    picks = picks.reshape(-1, *(kernel.shape[axis] for axis in window), kernel.rank)
    summed = lax.conv_general_dilated(
        across,
        jnp.asarray(picks.transpose(np.argsort([inputs, *window, outputs])), across.dtype),
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        numbers,
        precision=params["precision"],
    )
    at = numbers.out_spec[1]
    right = jnp.broadcast_to(
        kernel.right.reshape(-1, kernel.rank), (kernel.shape[outputs], kernel.rank)
    )
    sides = [kernel.shape[outputs] if axis == at else 1 for axis in range(base.ndim)]
    noise = functools.reduce(
        jnp.add,
        (
            lax.slice_in_dim(summed, rank, rank + 1, axis=at) * right[:, rank].reshape(sides)
            for rank in range(kernel.rank)
        ),
    )
    return [base + noise.astype(base.dtype)]
