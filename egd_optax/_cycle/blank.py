"""A buffer without content, for a page in host memory: zeros would be moved there."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
import jax.numpy as jnp


def unwritten(leaf: jax.Array) -> jax.Array:
    """A buffer like a leaf, divided over devices as it is, never to be read before it is written.

    Args:
        leaf: any array; its values are not used.

    Returns:
        An array of its shape and dtype.
    """
    like = jax.typeof(leaf)
    if jax.sharding.get_abstract_mesh().manual_axes:  # zeros vary over them as the leaf does
        return jnp.zeros_like(leaf)
    if like.sharding.mesh.explicit_axes:
        explicit: jax.Array = lax.empty(like.shape, like.dtype, out_sharding=like.sharding)
        return explicit
    # XLA:GPU does not divide a buffer that comes from nothing: it would allocate all of it on
    # every device and move a part. XLA:TPU does, and does not take the other form.
    buffer: jax.Array = lax.platform_dependent(
        leaf, cuda=_divided, rocm=_divided, default=_empty_like
    )
    return buffer


def _empty_like(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = lax.empty(leaf.shape, leaf.dtype)
    return buffer


@jax.custom_batching.custom_vmap
def _divided(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = _empty_of_shard(leaf)
    return buffer


@_divided.def_vmap
def _batched(_: int, batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
    return _divided(leaf), batched[0]


_empty_of_shard = custom_partitioning(_empty_like)


def _partition(
    mesh: Any, leaves: tuple[Any], result: Any
) -> tuple[Any, Callable[[jax.Array], jax.Array], Any, tuple[Any]]:
    del result
    sharding = leaves[0].sharding
    return mesh, _empty_like, sharding, (sharding,)


_empty_of_shard.def_partition(
    partition=_partition,
    infer_sharding_from_operands=lambda mesh, leaves, result: leaves[0].sharding,
    sharding_rule="... -> ...",
)
