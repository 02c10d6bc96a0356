"""A buffer that nobody has written yet: a page in host memory starts as one."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._jax import custom_partitioning


def unwritten(leaf: jax.Array) -> jax.Array:
    """Returns a buffer like a leaf, divided over devices as it is, to be written before it is read.

    Zeros would be made on the device and moved to the host. XLA:GPU does not divide a buffer that
    comes from nothing. It would allocate the whole buffer on every device, and move a part. There
    the buffer has a partitioning, that of the leaf. XLA:TPU divides the plain form, and does not
    take the other. Seen compiled ahead of time with jax 0.10.2.

    Args:
        leaf: any array; its values are not used.
    """
    like = jax.typeof(leaf)
    if jax.sharding.get_abstract_mesh().manual_axes:  # zeros vary over them as the leaf does
        return jnp.zeros_like(leaf)
    if like.sharding.mesh.explicit_axes:
        explicit: jax.Array = lax.empty(like.shape, like.dtype, out_sharding=like.sharding)
        return explicit
    buffer: jax.Array = lax.platform_dependent(
        leaf, cuda=_divided, rocm=_divided, default=_undivided
    )
    return buffer


def _empty_like(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = lax.empty(leaf.shape, leaf.dtype)
    return buffer


# Under `jax.vmap` JAX gives `lax.empty` the mapped axis, which the leaf may lack. It knows no rule
# for a partitioning from outside.
@jax.custom_batching.custom_vmap
def _undivided(leaf: jax.Array) -> jax.Array:
    return _empty_like(leaf)


@_undivided.def_vmap
def _undivided_batched(_: int, batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
    return _undivided(leaf), batched[0]


@jax.custom_batching.custom_vmap
def _divided(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = _empty_of_shard(leaf)
    return buffer


@_divided.def_vmap
def _divided_batched(_: int, batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
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
