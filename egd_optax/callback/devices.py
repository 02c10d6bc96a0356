"""The devices of a call: along which axes its arrays differ, and what all devices are told."""

import jax
from jax import lax


def axes_of(arrays: dict[int, jax.Array]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The manual axes along which the arrays differ, and those along which they are the same.

    Both are known where `jax.shard_map` checks it (`check_vma=True`); otherwise none of either.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    known = [name for name in manual if name in _varying(lax.axis_index(name))]
    differ: set[str] = set().union(*(_varying(leaf) for leaf in arrays.values()))
    return (
        tuple(name for name in known if name in differ),
        tuple(name for name in known if name not in differ),
    )


def on_mesh(values: jax.Array) -> jax.Array:
    """The values, whole on every device of a mesh of explicit axes: JAX knows of no mesh there."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return values
    whole: jax.Array = jax.sharding.reshard(values, jax.sharding.PartitionSpec())
    return whole


def cast_to_varying(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The value, said to differ along the axes: JAX takes what Python returns to be the same."""
    missing = tuple(name for name in axes if name not in _varying(value))
    return lax.pcast(value, missing, to="varying") if missing else value


def _varying(value: jax.Array) -> frozenset[str]:
    """The manual axes along which a value is said to differ."""
    varying: frozenset[str] = jax.typeof(value).manual_axis_type.varying
    return varying
