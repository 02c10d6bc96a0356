"""On which devices the arrays of a tree are, and how the results of a function are sharded."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from egd_optax._jax import Layout, with_layout_constraint
from egd_optax.backend.memory import platform
from egd_optax.backend.packing import LARGEST


def replicated_over(shardings: Iterable[Sharding]) -> Sharding | None:
    """The sharding of an array that each device of a mesh holds whole.

    Args:
        shardings: those of other arrays.

    Returns:
        A sharding on their mesh, or on their device; None if they have none, or several.
    """
    found = {_replicated(sharding) for sharding in shardings}
    return found.pop() if len(found) == 1 else None


def replicate_uncommitted(tree: Any, others: Any) -> Any:
    """A tree whose uncommitted arrays are whole on each device of other arrays.

    JAX moves an uncommitted array to the devices of the program that takes it. A serializer
    restores it to the one device where it was, and a program on a mesh then refuses it. A step
    also returns committed arrays, so that the next step would be compiled anew.

    Args:
        tree: pytree; all but its uncommitted arrays stay as they are.
        others: pytree. If its arrays are committed to no mesh or device, or to several, the result
            is `tree`.
    """
    arrays = [leaf for leaf in jax.tree.leaves(others) if is_concrete(leaf)]
    sharding = replicated_over(leaf.sharding for leaf in arrays if leaf.committed)
    if sharding is None:
        return tree

    def placed(leaf: Any) -> Any:
        if not is_concrete(leaf) or leaf.committed:
            return leaf
        # `jax.device_put` would compare its values on all processes, and wait for each of them.
        return jax.make_array_from_callback(leaf.shape, sharding, lambda _: leaf, dtype=leaf.dtype)

    return jax.tree.map(placed, tree)


def inferred_specs(fn: Callable[[Any], Any], tree: Any, mesh: Mesh) -> Any:
    """How the results of a function are sharded if its argument is.

    JAX infers shardings while it traces, but on explicit axes alone. On other axes XLA infers them,
    and not those of zeros that are like an argument. Hence all axes are explicit here.

    Args:
        fn: maps a pytree of arrays to a pytree of arrays; traced, not run.
        tree: pytree of arrays or `jax.ShapeDtypeStruct`, whole if they are not on the mesh.
        mesh: of axes of any type.

    Returns:
        A pytree of `PartitionSpec`, like the result of `fn`.
    """
    explicit = (AxisType.Explicit,) * len(mesh.axis_names)
    twin = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=explicit)

    def on_twin(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(twin, _spec(leaf))
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)

    with jax.set_mesh(mesh), jax.sharding.use_abstract_mesh(twin):
        return jax.tree.map(_spec, jax.eval_shape(fn, jax.tree.map(on_twin, tree)))


def is_concrete(leaf: Any) -> bool:
    """Whether a leaf is an array with values."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def _replicated(sharding: Sharding) -> Sharding | None:
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return NamedSharding(sharding.mesh, PartitionSpec())
    if isinstance(sharding, SingleDeviceSharding):
        return SingleDeviceSharding(*sharding.device_set)
    return None


def _spec(leaf: Any) -> PartitionSpec:
    sharding = getattr(leaf, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def like_an_argument(leaf: jax.Array, argument: jax.Array | None = None) -> jax.Array:
    """Returns the array, on a TPU in the layout that an argument of a program has.

    XLA:TPU would choose another layout for a stack of layers, transpose the whole stack outside of
    the loop over members, and hold both. It no longer divides the array as its uses are, but as its
    operands. Seen compiled for a TPU v5e with jax 0.10.2.

    Args:
        leaf: NaN where `argument` is.
        argument: of the same shape and dtype; the array is divided as this. None for an array that
            is divided already.
    """
    if leaf.ndim < 2 or leaf.size <= LARGEST or platform() != "tpu":
        return leaf
    if argument is not None:
        leaf = jnp.where(jnp.isnan(argument), argument, leaf)
    laid_out: jax.Array = with_layout_constraint(leaf, Layout(tuple(range(leaf.ndim))))
    return laid_out
