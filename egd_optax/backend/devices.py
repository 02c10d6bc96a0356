"""One device, or the devices along a manual axis, each with a share of some items."""

from collections.abc import Callable, Iterable
import math
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

T = TypeVar("T")


class Devices(NamedTuple):
    """The devices along a manual axis, or one if `axis` is None.

    Attributes:
        axis: the name of the axis.
        size: how many devices there are along it.
    """

    axis: str | None = None
    size: int = 1

    def rank(self) -> jax.Array:
        """Which of the devices runs this, int32 `[]`."""
        return jnp.int32(0) if self.axis is None else lax.axis_index(self.axis)

    def share(self, count: int) -> int:
        """How many of `count` items each device takes; the last ones may take some twice."""
        return math.ceil(count / self.size)

    def gather(self, local: jax.Array) -> jax.Array:
        """Returns the arrays of all devices, `[devices, ...]`, the same on each."""
        if self.axis is None:
            return local[None]
        # Not `all_gather`, whose result counts as another one on every device.
        everywhere = jnp.zeros((self.size, *local.shape), local.dtype)
        gathered: jax.Array = lax.psum(everywhere.at[self.rank()].set(local), self.axis)
        return gathered

    def sum(self, tree: T) -> T:
        """Returns the sum over the devices."""
        result: T = tree if self.axis is None else lax.psum(tree, self.axis)
        return result

    def most(self, count: jax.Array) -> jax.Array:
        """Returns the largest of a count on each device, so that all run as many trips."""
        return count if self.axis is None else lax.pmax(count, self.axis)

    def pick(self, tree: T, index: jax.typing.ArrayLike = 0) -> T:
        """Returns the arrays of one device on all: other devices may round differently."""
        if self.axis is None:
            return tree
        here = self.rank() == index
        result: T = jax.tree.map(
            lambda leaf: lax.psum(jnp.where(here, leaf, jnp.zeros_like(leaf)), self.axis), tree
        )
        return result

    def varying(self, tree: T) -> T:
        """Returns the arrays as ones that may differ from device to device."""
        if self.axis is None:
            return tree
        axes = (self.axis,)
        result: T = jax.tree.map(lambda leaf: cast_to_varying(leaf, axes), tree)
        return result


def varying_axes(value: jax.Array) -> frozenset[str]:
    """The manual axes along which a value may differ; JAX tracks them if `check_vma` is true."""
    varying: frozenset[str] = jax.typeof(value).manual_axis_type.varying
    return varying


def cast_to_varying(value: jax.Array, axes: Iterable[str]) -> jax.Array:
    """The value, said to differ along the axes; adds nothing to a program."""
    known = varying_axes(value)
    missing = tuple(name for name in axes if name not in known)
    return lax.pcast(value, missing, to="varying") if missing else value


def on_devices(
    axis: str | None, mesh: Any, run: Callable[..., T], *args: Any, calls_python: bool = False
) -> T:
    """Returns `run(devices, *args)`, run on each of the devices along an axis.

    Inside of `jax.shard_map` or `jax.pmap` over that axis `run` is part of that program. In a plain
    `jax.jit` the axis of the mesh becomes a manual one for `run`; XLA goes on to divide over the
    other axes.

    Args:
        axis: name of the axis; None for one device.
        mesh: the mesh of the axis; None for that of `jax.set_mesh`.
        run: maps `Devices` and the arguments to a pytree of arrays, the same on all devices.
        calls_python: whether `run` calls back to Python. JAX allows it only if all axes are
            manual ones. Along the others all devices then compute the same.
        *args: pytrees; their arrays are the same on all devices along the axis. On a mesh of
            explicit axes `run` may close over no others.
    """
    if axis is None:
        return run(Devices(), *args)
    if (size := bound_axis_size(axis)) is not None:
        return run(Devices(axis, size), *args)
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    devices = Devices(axis, mesh.shape[axis])
    leaves, treedef = jax.tree.flatten(args)
    at_arrays = [at for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def on_each(arrays: list[jax.Array]) -> T:
        whole = list(leaves)
        for at, array in zip(at_arrays, arrays, strict=True):
            whole[at] = array
        return run(devices, *jax.tree.unflatten(treedef, whole))

    manual = jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        axis_names=set(mesh.axis_names) if calls_python else {axis},
        # With it JAX tells along which axes one device can call for all.
        check_vma=calls_python,
    )
    result: T = manual([leaves[at] for at in at_arrays])
    return result


def zeros_beside(leaf: jax.Array, count: int) -> jax.Array:
    """Zeros for `count` arrays like one, `[count, ...]`, each divided over a mesh as that is."""
    sharding = jax.typeof(leaf).sharding
    beside = None
    if sharding.mesh.explicit_axes:
        beside = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return jnp.zeros((count, *leaf.shape), leaf.dtype, out_sharding=beside)


def alike(leaf: jax.Array, other: jax.Array) -> jax.Array:
    """The array, divided over a mesh as another one is; zero where that is NaN.

    XLA divides what an operation on two arrays returns as these are. Without one it may leave an
    array whole on every device, within the loops and branches around it. Seen compiled for eight
    H100 with jax 0.10.2: sums of low-rank noise were whole.
    """
    by_type = jax.typeof(other).sharding.mesh.explicit_axes  # it says how it is divided
    if by_type or not jnp.issubdtype(other.dtype, jnp.inexact):
        return leaf
    return jnp.where(jnp.isnan(other), jnp.zeros_like(leaf), leaf)


def divided_like(leaf: jax.Array, other: jax.Array) -> jax.Array:
    """The array, divided over a mesh of explicit axes as another one of its shape is."""
    sharding = jax.typeof(other).sharding
    if sharding.mesh.explicit_axes and jax.typeof(leaf).sharding != sharding:
        leaf = jax.sharding.reshard(leaf, sharding)
    return leaf


def placed_like(array: jax.Array, like: Any) -> jax.Array:
    """The array where another one is; the leading axes that it has more are not divided.

    Within `jax.jit`, and of an array that is not committed, XLA decides.
    """
    if isinstance(array, jax.core.Tracer) or not isinstance(like, jax.Array) or not like.committed:
        return array
    sharding, more = like.sharding, array.ndim - like.ndim
    if isinstance(sharding, NamedSharding) and more:
        spec = PartitionSpec(*(None,) * more, *sharding.spec)
        sharding = NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    placed: jax.Array = jax.device_put(array, sharding)
    return placed


def like_before(tree: T, before: Any) -> T:
    """Returns the arrays in the dtypes and the shardings of those before.

    A loop must give back what it got, and on a mesh of explicit axes the sharding is a part of the
    type. On other meshes XLA chooses within a program; between programs the arrays are moved.
    """

    def like(value: Any, old: Any) -> jax.Array:
        new: jax.Array = lax.convert_element_type(value, jnp.result_type(old))
        if not isinstance(old, jax.Array):
            return new
        if not isinstance(old, jax.core.Tracer) and not isinstance(new, jax.core.Tracer):
            if old.committed:
                new = jax.device_put(new, old.sharding)
            return new
        return divided_like(new, old)

    result: T = jax.tree.map(like, tree, before)
    return result


def bound_axis_size(name: str) -> int | None:
    """The size of a mapped axis, None outside of any `shard_map`, `pmap` or `vmap` over it."""
    try:
        return lax.axis_size(name)
    except NameError:
        return None
