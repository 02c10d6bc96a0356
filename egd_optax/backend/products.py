"""Sums of products of two factors, in the shape of a leaf."""

import string

import jax
from jax import lax
import jax.numpy as jnp


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
    left: jax.Array, right: jax.Array, weights: jax.Array, leaf: jax.Array
) -> jax.Array:
    """The sum of weight * `product` over members: one product over all.

    Args:
        left: of each of them, `[n, ..., rank]`.
        right: the same of the other factor.
        weights: `[n]`, of the dtype of the sum.
        leaf: for the shape.
    """
    left = jnp.expand_dims(weights, range(1, left.ndim)) * left.astype(weights.dtype)

    def of_all(factor: jax.Array) -> jax.Array:
        factor = jnp.moveaxis(factor.astype(weights.dtype), 0, -2)
        return factor.reshape(*factor.shape[:-2], -1)

    return product(of_all(left), of_all(right), leaf)
