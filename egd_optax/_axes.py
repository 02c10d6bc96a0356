"""The axes of `jax.shard_map` and `jax.pmap`: those that are named, those that are forgotten."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend.devices import bound_axis_size


def check_axes(execution: Any) -> None:
    """The axes that fitness is averaged over are mapped, and no other axis is forgotten."""
    for name in execution.axis_names:
        if bound_axis_size(name) is None:
            raise ValueError(
                f"`axis_name` must name a mapped axis, got {name!r} outside of any `jax.shard_map` "
                "or `jax.pmap` over it. Leave it out in a plain `jax.jit`: there a sharded batch "
                "is averaged as a whole."
            )
    for name in _others(execution):
        # `jax.pmap` makes up names of axes. Nothing can be averaged over these, nor gradients.
        if execution.axis_name is None and not _is_tracked(name) and not name.startswith("_"):
            raise ValueError(
                "`axis_name` must name the mapped axes, got None inside of `jax.shard_map` or "
                f"`jax.pmap` over {name!r}: replicas whose fitness differs would drift apart. "
                f'Pass `Execution(axis_name="{name}")` to average it, or `axis_name=()` if each '
                "device has a model of its own, or the same fitness in any case."
            )


def check_replicas(value: jax.Array, execution: Any) -> None:
    """Refuses fitness that is known to vary over an axis that no argument names."""
    for name in _others(execution):
        if _is_tracked(name) and _varies(value, name):
            raise ValueError(
                f"`axis_name` must name the mapped axes, got {execution.axis_name!r} inside of "
                f"`jax.shard_map` over {name!r}, along which fitness varies: replicas would drift "
                f'apart. Pass `Execution(axis_name="{name}")` to average it, or, if each device '
                "has a model of its own, `axis_name=()` and `jax.shard_map(..., check_vma=False)`."
            )


def _others(execution: Any) -> list[str]:
    """The axes of `jax.shard_map` and `jax.pmap` that an execution does not name."""
    named = {*execution.axis_names, execution.population_axis}
    return [name for name in jax.sharding.get_abstract_mesh().manual_axes if name not in named]


def _is_tracked(name: str) -> bool:
    """Whether JAX tracks which values vary over an axis: `check_vma` of `jax.shard_map`."""
    return bool(jax.typeof(lax.axis_index(name)) != jax.typeof(jnp.int32(0)))


def _varies(value: jax.Array, name: str) -> bool:
    try:
        lax.pcast(value, name, to="varying")
    except ValueError:  # it does already
        return True
    return False


def check_population_axis(spec: Any, params: Any, extra_args: Mapping[str, Any]) -> None:
    """Refuses an axis that cannot divide the members.

    Raises:
        ValueError: there is no mesh, no axis of that name in it, or there are fewer members than
            devices. Parameters or arguments are known to be sharded over the axis.
    """
    axis = spec.execution.population_axis
    if axis is None:
        return
    devices = bound_axis_size(axis)
    if devices is None:
        mesh = spec.execution.mesh or jax.sharding.get_abstract_mesh()
        if mesh.empty:
            raise ValueError(
                f"`population_axis` needs a mesh, got {axis!r} without one: pass `mesh=mesh`, or "
                "trace the step under `jax.set_mesh(mesh)`, or inside of `jax.shard_map`."
            )
        if axis not in mesh.axis_names:
            raise ValueError(
                f"`population_axis` must be an axis of the mesh, got {axis!r}: the mesh has "
                f"{mesh.axis_names}."
            )
        devices = mesh.shape[axis]
    for what, tree in (("parameters", params), ("samples", extra_args)):
        if any(axis in _sharded_over(leaf) for leaf in jax.tree.leaves(tree)):
            raise ValueError(
                f"`population_axis` must not shard {what}, got {axis!r}, which does: every device "
                "along it has members of its own and needs all of them. Give the mesh an axis "
                "for each."
            )
    least = devices * spec.pair
    if spec.population_size < least:
        pairs = ", two on each, for a pair shares its noise" if spec.antithetic else ""
        raise ValueError(
            f"`population_size` must be at least {least} on {devices} devices{pairs}, got "
            f"{spec.population_size}: raise it, or make the axis {axis!r} of the mesh smaller."
        )


def _sharded_over(leaf: Any) -> list[str]:
    """The axes of a mesh that shard a leaf, as far as it is known."""
    if not isinstance(leaf, jax.Array):
        return []
    entries = (entry for entry in jax.typeof(leaf).sharding.spec if isinstance(entry, str | tuple))
    return [name for entry in entries for name in (entry if isinstance(entry, tuple) else (entry,))]
