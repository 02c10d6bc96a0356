"""The noise of a leaf: mean 0 and the same standard deviation in every entry, of full or low rank.

Of low rank the noise of a leaf is A B^T / sqrt(rank) (Sarkar et al., `Evolution Strategies
at the Hyperscale <https://arxiv.org/abs/2511.16652>`_, 2025): A has a row for every index of
all axes but the last, B one for every index of the last. The entries of A and B are
independent normal numbers. Vectors and scalars are drawn in full, and so are leaves for
which A and B would have as many entries as the leaf.
"""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Factors = tuple[jax.Array, jax.Array]


def low_rank_factors(
    key: jax.Array, std: jax.Array, like: jax.Array, rank: int | None
) -> Factors | None:
    """What the low-rank noise of one member is the product of.

    Args:
        key: threefry key of this member and leaf.
        std: standard deviation of the noise, `[]` of `wide_dtype`.
        like: the leaf.
        rank: None for independent normal entries.

    Returns:
        A times `std` and B, of `wide_dtype`; None where the noise is of full rank.
    """
    if rank is None or not _splits(like, rank):
        return None
    dtype = wide_dtype(like.dtype)
    left, right = _factors(key, like, rank)
    return std * left.astype(dtype), right.astype(dtype)


def scaled_noise(
    key: jax.Array, std: jax.Array, like: jax.Array, factors: Factors | None
) -> jax.Array:
    """The noise of one member.

    Args:
        key: threefry key of this member and leaf.
        std: standard deviation, `[]` of `wide_dtype`.
        like: the leaf.
        factors: `low_rank_factors` of the same.

    Returns:
        An array of the shape of `like`, of `wide_dtype` of its dtype. Drawn in float32 or
        complex64 whatever its precision: the draw is the same in all.
    """
    if factors is not None:
        return _product("...r,cr->...c", *factors, like)
    noise = _normal(key, like.shape, like, out_sharding=jax.typeof(like).sharding)
    return std * noise.astype(wide_dtype(like.dtype))


def weighted_noise(
    keys: jax.Array, weights: jax.Array, std: jax.Array, like: jax.Array, rank: int | None
) -> jax.Array:
    """The sum of weight * noise over some members.

    Of low rank it is one matrix product of all their factors: the noise of no member is
    formed.

    Args:
        keys: threefry keys of the members and this leaf, `[n]`.
        weights: float `[n]`.
        std: standard deviation of the noise, `[]`.
        like: the leaf.
        rank: None for independent normal entries.

    Returns:
        An array of the shape of `like`, of `sum_dtype` of its dtype.
    """
    dtype = sum_dtype(like.dtype)
    weights = std * weights.astype(dtype)
    if rank is None or not _splits(like, rank):
        sharding = jax.typeof(like).sharding
        noise = jax.vmap(lambda key: _normal(key, like.shape, like, out_sharding=sharding))(keys)
        return jnp.tensordot(weights, noise.astype(dtype), axes=1, precision=lax.Precision.HIGHEST)
    left, right = jax.vmap(lambda key: _factors(key, like, rank))(keys)
    left = jnp.expand_dims(weights, range(1, left.ndim)) * left
    return _product("n...r,ncr->...c", left, right, like)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a leaf is computed in: float32, or its own where that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that noise of a leaf is summed in: that of fitness, or its own wide one."""
    return jnp.promote_types(wide_dtype(dtype), jnp.result_type(float))


def _normal(
    key: jax.Array, shape: tuple[int, ...], like: jax.Array, out_sharding: Any = None
) -> jax.Array:
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    dtype = jnp.complex64 if is_complex else jnp.float32
    return jax.random.normal(key, shape, dtype, out_sharding=out_sharding)


def _splits(like: jax.Array, rank: int) -> bool:
    rows, columns = _sides(like)
    return (rows + columns) * rank < rows * columns


def _sides(like: jax.Array) -> tuple[int, int]:
    return math.prod(like.shape[:-1]), math.prod(like.shape[-1:])


def _factors(key: jax.Array, like: jax.Array, rank: int) -> Factors:
    """A, `[*shape[:-1], rank]`, and B, `[shape[-1], rank]`, of one draw."""
    rows, columns = _sides(like)
    factors = _normal(key, (rows + columns, rank), like) / rank**0.25
    return factors[:rows].reshape(*like.shape[:-1], rank), factors[rows:]


def _product(axes: str, left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    # Sharded like the leaf from the start: no device holds all of it.
    return jnp.einsum(
        axes,
        left,
        right,
        precision=lax.Precision.HIGHEST,
        out_sharding=jax.typeof(like).sharding,
    )
