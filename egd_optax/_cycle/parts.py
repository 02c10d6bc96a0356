"""The noise of one leaf of one member: drawn, rounded, checked, formed and summed.

The library rounds and checks here what an operator draws, so that the operator need not: see
`egd_optax.noise.Noise`.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._cycle import xla
from egd_optax._cycle.parent import wide_dtype
from egd_optax.noise import Noise, Parts


class _Signed(NamedTuple):
    """Parts of noise that is not linear in them, and a number that it is multiplied with."""

    sign: jax.Array
    parts: Parts


def draw(noise: Noise, key: jax.Array, std: jax.Array, leaf: jax.Array) -> Parts:
    """Parts of the noise of a leaf as they are used everywhere: rounded, and finite."""
    parts = noise.draw(key, std, leaf)
    whole = isinstance(parts, jax.Array) and parts.shape == leaf.shape
    rounded = xla.rounded_to_add if whole else xla.rounded_to_multiply

    def settled(part: jax.Array) -> jax.Array:
        if not jnp.issubdtype(jnp.result_type(part), jnp.inexact):
            return part
        return rounded(part if noise.finite else _finite(part))

    parts = jax.tree.map(settled, parts)
    return parts if noise.linear else _Signed(jnp.ones([], std.dtype), parts)


def scale(noise: Noise, parts: Parts, by: jax.typing.ArrayLike) -> Parts:
    """What a number, `[]`, times the noise is made of; exact for 0, 1 and -1."""
    if not noise.linear:
        return parts._replace(sign=jnp.asarray(by, parts.sign.dtype) * parts.sign)
    (first, *others), treedef = jax.tree.flatten(parts)
    return jax.tree.unflatten(treedef, (jnp.asarray(by, first.dtype) * first, *others))


def form(noise: Noise, parts: Parts, leaf: jax.Array) -> jax.Array:
    """The noise of a leaf, the same to the bit everywhere, in float32 or wider."""
    if isinstance(parts, _Signed):
        return parts.sign * form(noise, parts.parts, leaf)
    formed = _checked(noise, noise.form(parts, leaf), leaf)
    formed = formed.astype(jnp.promote_types(formed.dtype, jnp.float32))
    if not noise.finite:
        formed = _finite(formed)
    return formed if noise.rounded else xla.rounded_to_add(formed)


def weighted_sum(noise: Noise, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
    """The sum of weight * noise over members, in their order, all of whose parts are held."""
    if isinstance(parts, _Signed):
        parts = parts.parts  # the members are not second ones
    dtype = sum_dtype(leaf.dtype)
    weights = weights.astype(dtype)

    def widened(part: jax.Array) -> jax.Array:
        exact = not jnp.issubdtype(part.dtype, jnp.inexact)
        return part if exact else part.astype(jnp.promote_types(part.dtype, dtype))

    total = noise.form_sum(jax.tree.map(widened, parts), weights, leaf)
    if total is not None:
        return _checked(noise, total, leaf)
    members = (jax.tree.map(lambda part: part[at], parts) for at in range(weights.size))  # noqa: B023
    noises = (form(noise, member, leaf) for member in members)
    return functools.reduce(jnp.add, map(jnp.multiply, weights, noises))


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that noise of a leaf is summed in: that of fitness, or its own wide one."""
    return jnp.promote_types(wide_dtype(dtype), jnp.result_type(float))


def check_noise(noise: Noise, leaves: Sequence[jax.ShapeDtypeStruct]) -> None:
    """Draws the noise of the smallest leaf once, where that can be done while a step is traced.

    Raises:
        ValueError: the noise is NaN or infinite.
    """
    if noise.finite or not leaves or jax.sharding.get_abstract_mesh().manual_axes:
        return
    smallest = min(leaves, key=lambda leaf: leaf.size)
    with jax.ensure_compile_time_eval():
        leaf = jnp.zeros(smallest.shape, smallest.dtype)
        std = jnp.ones([], jnp.finfo(wide_dtype(leaf.dtype)).dtype)
        drawn = _checked(noise, noise.form(noise.draw(jax.random.key(0), std, leaf), leaf), leaf)
        finite = jnp.all(jnp.isfinite(drawn))
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(
            f"`noise` must be finite, got NaN or infinite numbers from {noise!r} for a leaf of "
            f"shape {leaf.shape} and a standard deviation of one."
        )


def _checked(noise: Noise, formed: Any, leaf: jax.Array) -> jax.Array:
    """Noise of a leaf, refused by name where it is none."""
    if jnp.shape(formed) != leaf.shape:
        raise ValueError(
            f"`noise` must be of the shape of its leaf, {leaf.shape}, got {jnp.shape(formed)} "
            f"from {noise!r}."
        )
    dtype = jnp.result_type(formed)
    kind = jnp.inexact if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.floating
    if not jnp.issubdtype(dtype, kind):
        raise TypeError(
            f"`noise` must be real floating-point numbers for a leaf of {leaf.dtype}, got {dtype} "
            f"from {noise!r}."
        )
    return jnp.asarray(formed)


def _finite(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(values), values, jnp.zeros_like(values))
