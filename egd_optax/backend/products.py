"""Sums of products of two factors, in the shape of a leaf."""

import functools
import string

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend.packing import LARGEST

# More terms than these are no sum that is written out: each is a piece of program.
_MOST_TERMS = 64


def product(left: jax.Array, right: jax.Array, leaf: jax.Array) -> jax.Array:
    """The sum of products over the last axis of two factors, of the shape of a leaf."""
    sharding = jax.typeof(leaf).sharding  # from the start: no device holds the whole product
    axes = range(leaf.ndim)
    if left.shape[-1] == 1:
        # A product of entries, no matrix product: XLA:CPU forms it within what uses the member.
        sides = (
            lax.broadcast_in_dim(factor[..., 0], leaf.shape, axes, out_sharding=sharding)
            for factor in (left, right)
        )
        return next(sides) * next(sides)
    names, operands = [], []
    for factor in (left, right):
        own = [axis for axis in axes if factor.shape[axis] == leaf.shape[axis]]
        operands.append(lax.squeeze(factor, [axis for axis in axes if axis not in own]))
        names.append("".join(string.ascii_uppercase[axis] for axis in own))
    whole = "".join(string.ascii_uppercase[axis] for axis in axes)
    return jnp.einsum(
        f"{names[0]}r,{names[1]}r->{whole}",
        *operands,
        precision=lax.Precision.HIGHEST,
        out_sharding=sharding,
    )


def sum_of_products(
    left: jax.Array,
    right: jax.Array,
    weights: jax.Array,
    leaf: jax.Array,
    *,
    added: bool = False,
) -> jax.Array:
    """The sum of weight * `product` over members: one product over all.

    Args:
        left: of each of them, `[n, ..., rank]`.
        right: the same of the other factor.
        weights: `[n]`, of the dtype of the sum.
        leaf: for the shape.
        added: whether the sum is added to others in a loop: then it is an array anyway.
    """
    left = jnp.expand_dims(weights, range(1, left.ndim)) * left.astype(weights.dtype)

    def of_all(factor: jax.Array) -> jax.Array:
        factor = jnp.moveaxis(factor.astype(weights.dtype), 0, -2)
        return factor.reshape(*factor.shape[:-2], -1)

    at_once = functools.partial(product, leaf=leaf)
    left, right = of_all(left), of_all(right)
    if added or leaf.size <= LARGEST or left.shape[-1] > _MOST_TERMS:
        return at_once(left, right)
    # A larger leaf is summed in the way that takes the least memory.
    by_terms = functools.partial(added_up, leaf=leaf)
    total: jax.Array = lax.platform_dependent(
        left, right, cuda=by_terms, rocm=by_terms, tpu=by_terms, default=at_once
    )
    return total


def added_up(left: jax.Array, right: jax.Array, leaf: jax.Array) -> jax.Array:
    """The same as `product`, as a sum that XLA computes within what uses it.

    The result of a matrix product is an array in float32. It can be half as large as all
    parameters, if these are in bfloat16 and their layers in stacks. On a TPU so is that of a
    reduction: its terms are written out.
    """
    ranks = range(left.shape[-1])
    terms = (product(left[..., at : at + 1], right[..., at : at + 1], leaf) for at in ranks)
    return functools.reduce(jnp.add, terms)


def part_of(array: jax.Array, part: jax.typing.ArrayLike, parts: int, axis: int) -> jax.Array:
    """One of so many equal parts along an axis."""
    if parts == 1:
        return array
    size = array.shape[axis] // parts
    return lax.dynamic_slice_in_dim(array, part * size, size, axis)
