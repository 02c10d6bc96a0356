"""Stages 3 to 5 where devices share a population: each of them evaluates some members only.

What they exchange is small: the fitness of the members, and once a generation the child. No
member is ever sent: those that recombine are drawn again from their keys, and the devices
divide that work too, in one of two ways.

`Lanes`, in a program for a whole mesh: each device sums a part of the parameters over all
members, and the parts are gathered. The sum is the same to the bit as on one device.
`Mapped`, in the program of one device, inside of `jax.shard_map` or `jax.pmap`: each device
sums some of the members, and the sums are added up.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egd_optax._cycle.evaluate import Fitness, bound_axis_size
from egd_optax._cycle.mutate import Mutants, move, scaled
from egd_optax._cycle.snapshot import Leaves
from egd_optax._cycle.weigh import sides_of

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


class Division(Protocol):
    """How the devices along an axis share work."""

    @property
    def devices(self) -> int:
        """The size of the axis."""

    def each(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Runs `fn` for the lanes 0, 1, ..., each on its devices; all results, `[devices, ...]`."""

    def terms(self, count: int) -> jax.Array:
        """Which of so many terms this device sums, int32; `count` and above are none."""

    def share(self, genome: Leaves) -> Leaves:
        """The genome in the form in which the devices sum."""

    def land(self, shared: Leaves, total: Leaves, genome: Leaves) -> Leaves:
        """The genome plus the sum, whole on every device; `shared` is `share(genome)`."""


def divide(axis: str, mesh: AnyMesh | None, mutants: Mutants, args: Mapping[str, Any]) -> Division:
    """The division of a population over a mapped axis of that name, else over one of a mesh.

    Args:
        axis: name of the axis.
        mesh: None for the mesh that `jax.set_mesh` has set.
        mutants: the members.
        args: the extra arguments of `value_fn`.

    Returns:
        The division.

    Raises:
        ValueError: there is no mesh, no axis of that name in it, or there are fewer members
            than devices; parameters or arguments are known to be sharded over the axis.
    """
    mapped = bound_axis_size(axis)
    if mapped is not None:
        division: Division = Mapped(axis, mapped)
    else:
        mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
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
        division = Lanes(axis, mesh.shape[axis], mesh)
    for what, tree in (("parameters", mutants.genome.leaves()), ("samples", args)):
        if any(axis in _axes(leaf) for leaf in jax.tree.leaves(tree)):
            raise ValueError(
                f"`population_axis` must not shard {what}, got {axis!r}, which does: every device "
                "along it has members of its own and needs all of them. Give the mesh an axis "
                "for each."
            )
    least = division.devices * len(sides_of(mutants))
    members = mutants.size - mutants.antithetic
    if members < least:
        pairs = ", two on each, for a pair shares its noise" if mutants.antithetic else ""
        raise ValueError(
            f"`population_size` must be at least {least} on {division.devices} devices{pairs}, got "
            f"{members}: raise it, or make the axis {axis!r} of the mesh smaller."
        )
    return division


def score(division: Division, mutants: Mutants, fitness: Fitness, *, batch_size: int) -> jax.Array:
    """Draws and evaluates every member of a generation on one of the devices; keeps none.

    Where the devices do not divide the members, the last ones repeat some for nothing.

    Args:
        division: how the devices share them.
        mutants: the members.
        fitness: the fitness of a member.
        batch_size: members to draw and evaluate at a time on a device.

    Returns:
        The fitness of all members, `[size]`, on all devices.
    """
    sides = sides_of(mutants)
    first = int(mutants.antithetic)  # the parent stands apart from pairs
    draws = (mutants.size - first) // len(sides)
    share = math.ceil(draws / division.devices)

    def one(draw: jax.Array) -> jax.Array:
        inside, member = mutants.beside(first + len(sides) * draw)
        # Noise is drawn for the parent, and not used.
        parts, moves = inside.parts(member), (member > 0).astype(jnp.float32)
        members = (inside.place(scaled(parts, moves * side)) for side in sides)
        return jnp.stack([fitness(member) for member in members])

    def lane(index: jax.Array) -> jax.Array:
        own = jnp.minimum(index * share + jnp.arange(share), draws - 1)
        together = batch_size // len(sides)
        scores: jax.Array = lax.map(one, own, batch_size=together if together > 1 else None)
        return scores

    scores = division.each(lane).reshape(-1)[: draws * len(sides)]
    return jnp.append(fitness(mutants.genome.leaves()), scores) if mutants.antithetic else scores


class Lanes(NamedTuple):
    """A program for a whole mesh, which XLA divides; the model is in no manual region.

    XLA divides what is vectorised and not what is repeated: the lanes are an axis of
    `jax.vmap`, pinned to the axis of the mesh.

    Attributes:
        axis: name of the axis of the mesh.
        devices: its size.
        mesh: the mesh.
    """

    axis: str
    devices: int
    mesh: AnyMesh

    def each(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        lanes = self._pinned(jnp.arange(self.devices), 0, self.axis)
        name = None if self._explicit else self.axis
        return self._pinned(jax.vmap(fn, spmd_axis_name=name)(lanes), 0, None)

    def terms(self, count: int) -> jax.Array:
        return jnp.arange(count)

    def share(self, genome: Leaves) -> Leaves:
        return tuple(map(self._divided, genome))

    def land(self, shared: Leaves, total: Leaves, genome: Leaves) -> Leaves:
        return tuple(map(self._whole, move(shared, total), genome))

    @property
    def _explicit(self) -> bool:
        kind: AxisType = self.mesh.axis_types[self.mesh.axis_names.index(self.axis)]
        return kind == AxisType.Explicit

    def _divided(self, leaf: jax.Array) -> jax.Array:
        """The leaf with one side split in two, the second as long as the axis and on it.

        Nothing changes place: other axes of the mesh go on to shard the first of the two.
        """
        at = self._side(leaf)
        if at is None:
            return leaf
        sides = leaf.shape[at] // self.devices, self.devices
        shape = (*leaf.shape[:at], *sides, *leaf.shape[at + 1 :])
        spec = _spec(leaf)
        split = _reshaped(leaf, shape, (*spec[: at + 1], None, *spec[at + 1 :]))
        return self._pinned(split, at + 1, self.axis)

    def _whole(self, part: jax.Array, leaf: jax.Array) -> jax.Array:
        at = self._side(leaf)
        if at is None:
            return part
        return _reshaped(self._pinned(part, at + 1, None), leaf.shape, _spec(leaf))

    def _side(self, leaf: jax.Array) -> int | None:
        """The longest side that the axis divides, without the last, which low-rank noise needs.

        A leaf without one stays whole, as vectors do: every device sums all of it.
        """
        sizes = dict(self.mesh.shape)
        spec = _spec(leaf)

        def fits(at: int) -> bool:
            shards = math.prod(sizes[name] for name in _names(spec[at]))
            side, remainder = divmod(leaf.shape[at], self.devices)
            # XLA could shard a side as long as the axis before it is split, and sum in parts
            # what is the same on all devices.
            return side > 1 and remainder == 0 and side % shards == 0

        return max(filter(fits, range(leaf.ndim - 1)), key=leaf.shape.__getitem__, default=None)

    def _pinned(self, leaf: jax.Array, at: int, name: str | None) -> jax.Array:
        """The leaf with side `at` on an axis of the mesh, or on none; others as they are."""
        known = _spec(leaf) if self._explicit else (PartitionSpec.UNCONSTRAINED,) * leaf.ndim
        spec = PartitionSpec(*known[:at], name, *known[at + 1 :])
        sharding = NamedSharding(self.mesh, spec)
        pinned: jax.Array
        if self._explicit:
            pinned = jax.sharding.reshard(leaf, sharding)
        else:
            pinned = lax.with_sharding_constraint(leaf, sharding)
        return pinned


class Mapped(NamedTuple):
    """The program of one device among those of a mapped axis.

    Attributes:
        axis: name of the axis.
        devices: its size.
    """

    axis: str
    devices: int

    def each(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        index = lax.axis_index(self.axis)
        own = fn(index)
        # Not `all_gather`, whose result counts as another one on every device.
        nothing = jnp.zeros((self.devices, *own.shape), own.dtype)
        results: jax.Array = lax.psum(nothing.at[index].set(own), self.axis)
        return results

    def terms(self, count: int) -> jax.Array:
        most = math.ceil(count / self.devices)
        return lax.axis_index(self.axis) + self.devices * jnp.arange(most)

    def share(self, genome: Leaves) -> Leaves:
        return tuple(lax.pcast(leaf, self.axis, to="varying") for leaf in genome)

    def land(self, shared: Leaves, total: Leaves, genome: Leaves) -> Leaves:
        return move(genome, lax.psum(total, self.axis))


def _spec(leaf: jax.Array) -> tuple[Any, ...]:
    """What shards each side of a leaf, as far as it is known when the program is traced."""
    spec = tuple(jax.typeof(leaf).sharding.spec)
    return (*spec, *(None,) * (leaf.ndim - len(spec)))


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _axes(leaf: Any) -> list[str]:
    """The axes of a mesh that shard a leaf, as far as it is known."""
    if not isinstance(leaf, jax.Array):
        return []
    return [name for entry in _spec(leaf) for name in _names(entry)]


def _reshaped(leaf: jax.Array, shape: tuple[int, ...], spec: tuple[Any, ...]) -> jax.Array:
    sharding = NamedSharding(jax.typeof(leaf).sharding.mesh, PartitionSpec(*spec))
    reshaped: jax.Array = lax.reshape(leaf, shape, out_sharding=sharding)
    return reshaped
