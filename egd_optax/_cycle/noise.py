"""The noise of a leaf: mean 0 and the same standard deviation in every entry, of full or low rank.

Of low rank the noise of a leaf is A B^T / sqrt(rank) (Sarkar et al., `Evolution Strategies
at the Hyperscale <https://arxiv.org/abs/2511.16652>`_, 2025): A has a row for every index of
all axes but the last, B one for every index of the last. The entries of A and B are
independent normal numbers. Vectors and scalars are drawn in full, and so are leaves for
which A and B would have as many entries as the leaf.
"""

import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

# What the noise of a leaf is made of: two factors where it is of low rank, else itself.
Parts = tuple[jax.Array, jax.Array] | jax.Array


def draw_parts(key: jax.Array, std: jax.Array, like: jax.Array, rank: int | None) -> Parts:
    """Draws what the noise of one member is made of.

    Args:
        key: threefry key of this member and leaf.
        std: standard deviation of the noise, `[]` of `wide_dtype`.
        like: the leaf.
        rank: None for independent normal entries.

    Returns:
        The noise, like the leaf, or A times `std`, `[*shape[:-1], rank]`, and B, `[shape[-1],
        rank]`; of `wide_dtype`. Drawn in float32 or complex64 whatever the leaf's precision:
        the draw is the same in all.

        A member is the same to the bit wherever it is formed, although XLA multiplies and
        adds in one operation in some places and not in others: where noise is a product of
        two entries these have half of their digits, so that it is exact, and full noise has
        a digit less than its dtype, so that it is rounded before it is added.
    """
    dtype = wide_dtype(like.dtype)
    if rank is None or not _splits(like, rank):
        noise = _normal(key, like.shape, like, out_sharding=jax.typeof(like).sharding)
        return rounded_first(std * noise.astype(dtype))
    rows, columns = _sides(like)
    factors = (_normal(key, (rows + columns, rank), like) / rank**0.25).astype(dtype)
    left = _half_as_precise(std * factors[:rows]).reshape(*like.shape[:-1], rank)
    return left, _half_as_precise(factors[rows:])


def scaled(parts: Parts, by: jax.Array | int) -> Parts:
    """What a number, `[]`, times the noise is made of; exact for 0, 1 and -1."""
    if isinstance(parts, tuple):
        return by * parts[0], parts[1]
    return by * parts


def form(parts: Parts, like: jax.Array) -> jax.Array:
    """The noise of one member, of the shape of its leaf `like` and of the dtype of the parts."""
    if not isinstance(parts, tuple):
        return parts
    left, right = parts
    if right.shape[-1] > 1:
        return _product("...r,cr->...c", left, right, like)
    # A product of entries, no matrix product: XLA:CPU forms it within what uses the member.
    sharding = jax.typeof(like).sharding
    *rows, column = range(like.ndim)
    return lax.broadcast_in_dim(
        left[..., 0], like.shape, rows, out_sharding=sharding
    ) * lax.broadcast_in_dim(right[:, 0], like.shape, [column], out_sharding=sharding)


def form_sum(parts: Parts, weights: jax.Array, like: jax.Array) -> jax.Array:
    """The sum of weight * noise over some members, in their order.

    Of low rank the noise of no member is formed. Of rank one it is a sum of products of
    entries, which is the same to the bit however the leaf is divided over devices.

    Args:
        parts: what their noise is made of, each with a leading axis `[n]`.
        weights: float `[n]`.
        like: the leaf.

    Returns:
        An array of the shape of `like`, of `sum_dtype` of its dtype.
    """
    dtype = sum_dtype(like.dtype)
    weights = weights.astype(dtype)
    if not isinstance(parts, tuple):
        noise = parts.astype(dtype)
        return jnp.tensordot(weights, noise, axes=1, precision=lax.Precision.HIGHEST)
    left, right = (factor.astype(dtype) for factor in parts)
    left = jnp.expand_dims(weights, range(1, left.ndim)) * left
    if right.shape[-1] > 1:
        return _product("n...r,ncr->...c", left, right, like)
    terms = (form(factors, like) for factors in zip(left, right, strict=True))
    return functools.reduce(jnp.add, terms)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a leaf is computed in: float32, or its own where that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that noise of a leaf is summed in: that of fitness, or its own wide one."""
    return jnp.promote_types(wide_dtype(dtype), jnp.result_type(float))


def rounded_to(wide: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The values in the precision of a dtype, in the dtype they have.

    Before a cast. XLA may leave out a cast to fewer digits that is followed by one back, so
    that a member would be evaluated with digits that it does not have; this it leaves in.
    """
    return _with_digits(wide, jnp.finfo(dtype).nmant)


def rounded_first(product: jax.Array) -> jax.Array:
    """A product with a digit less than its dtype has.

    So that it is rounded before it is added, and the sum is the same to the bit everywhere: XLA
    multiplies and adds in one operation in some places and not in others.
    """
    return _with_digits(product, jnp.finfo(product.dtype).nmant - 1)


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


def _half_as_precise(values: jax.Array) -> jax.Array:
    # Digits count without the leading one, which is not stored: 11 + 1 of the 23 + 1 of float32.
    return _with_digits(values, (jnp.finfo(values.dtype).nmant - 1) // 2)


def _with_digits(values: jax.Array, digits: int) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        return lax.complex(_with_digits(values.real, digits), _with_digits(values.imag, digits))
    finfo = jnp.finfo(values.dtype)
    if digits >= finfo.nmant:
        return values
    return lax.reduce_precision(values, exponent_bits=finfo.nexp, mantissa_bits=digits)


def _product(axes: str, left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    # Sharded like the leaf from the start: no device holds all of it.
    return jnp.einsum(
        axes,
        left,
        right,
        precision=lax.Precision.HIGHEST,
        out_sharding=jax.typeof(like).sharding,
    )
