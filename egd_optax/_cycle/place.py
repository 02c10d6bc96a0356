"""Where members are evaluated and summed: alone, or divided over the devices along an axis.

What devices exchange is small: the fitness of the members, and once a generation the child. No
member is ever sent: those that recombine are drawn again from their keys, and the devices
divide that work too, in one of two ways.

`Lanes`, in a program for a whole mesh: each device sums a part of the parameters over all
members, and the parts are gathered. The sum is the same to the bit as on one device.
`Mapped`, in the program of one device, inside of `jax.shard_map` or `jax.pmap`: each device
sums some of the members, and the sums are added up.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from egd_optax._cycle import xla
from egd_optax._cycle.auxiliary import Evaluated
from egd_optax._cycle.axes import bound_axis_size
from egd_optax._cycle.fitness import Fitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.spec import Leaves
from egd_optax.execution import Execution

T = TypeVar("T")
Results = TypeVar("Results")
# Adds the weighted noise of a genome's members to zeros like it.
Sum = Callable[[Genome, Leaves], Leaves]
# What comes of a genome and of a sum like it: the two added up, or the sum.
Land = Callable[[Leaves, Leaves], Leaves]


class Place(Protocol):
    """How the devices along an axis share the work of a generation."""

    @property
    def devices(self) -> int:
        """The size of the axis."""

    def each(self, fn: Callable[[jax.Array], tuple[T, Results]]) -> tuple[T, Results]:
        """Runs `fn` for the lanes 0, 1, ..., each on its devices.

        Returns:
            What a lane has kept, nothing if there are several, and the results of all lanes, with
            a leading axis.
        """

    def on_each(self, fn: Fitness) -> Callable[[Leaves], Evaluated]:
        """The same function of leaves that all devices have, in the form that a lane has of it.

        Equal pieces of program are compiled once, and give the same bits. The first lane counts.
        """

    def agreed(self, fn: Fitness) -> Fitness:
        """The same function of leaves that all devices have, with one result for all of them."""

    def mine(self, count: int) -> jax.Array | np.ndarray:
        """Which of so many terms of a sum this device adds, bool `[count]`."""

    def own(self, values: jax.Array, fill: int = 0) -> jax.Array:
        """Those of some values, one for each term, of the terms that this device adds.

        As many on each device, filled up.
        """

    def beside_members(self, leaves: T) -> T:
        """Leaves that all devices have, as those of members, which differ from device to device."""

    def share(self, genome: Leaves) -> Leaves:
        """The genome in the form in which the devices sum."""

    def land(
        self, sum_of: Sum, zeros: Leaves, genome: Genome, fitness: jax.Array, add: Land
    ) -> Leaves:
        """What comes of the genome and the sum, whole on every device.

        Args:
            sum_of: sums for the `share` of a genome.
            zeros: to sum in, like `share` of the genome.
            genome: the mutating leaves of the parent.
            fitness: of the members.
            add: adds up the leaves and the sum.

        Returns:
            Leaves like the genome, of the dtypes of the sum or of `add`.
        """


def mesh_of(execution: Execution) -> jax.sharding.Mesh | jax.sharding.AbstractMesh | None:
    """The mesh that a program for all of its devices divides members over, if it does."""
    axis = execution.population_axis
    if axis is None or bound_axis_size(axis) is not None:
        return None
    return jax.sharding.get_abstract_mesh() if execution.mesh is None else execution.mesh


def place_of(execution: Execution, members: Members, args: Mapping[str, Any]) -> Place:
    """Where the members are evaluated.

    Args:
        execution: names the axis, and its mesh if that is not set.
        members: the members.
        args: the extra arguments of `value_fn`.

    Returns:
        The place: over a mapped axis of that name, else over one of a mesh, else alone.

    Raises:
        ValueError: there is no mesh, no axis of that name in it, or there are fewer members
            than devices; parameters or arguments are known to be sharded over the axis.
    """
    axis, mesh = execution.population_axis, mesh_of(execution)
    if axis is None:
        return Alone()
    if mesh is None:
        place: Place = Mapped(axis, lax.axis_size(axis))
    else:
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
        place = Lanes(axis, mesh.shape[axis], mesh, members.divisible)
    for what, tree in (("parameters", members.genome.leaves()), ("samples", args)):
        if any(axis in _axes(leaf) for leaf in jax.tree.leaves(tree)):
            raise ValueError(
                f"`population_axis` must not shard {what}, got {axis!r}, which does: every device "
                "along it has members of its own and needs all of them. Give the mesh an axis "
                "for each."
            )
    least = place.devices * members.pair
    size = members.size - members.antithetic
    if size < least:
        pairs = ", two on each, for a pair shares its noise" if members.antithetic else ""
        raise ValueError(
            f"`population_size` must be at least {least} on {place.devices} devices{pairs}, got "
            f"{size}: raise it, or make the axis {axis!r} of the mesh smaller."
        )
    return place


class Alone(NamedTuple):
    """One lane with all members."""

    @property
    def devices(self) -> int:
        return 1

    def each(self, fn: Callable[[jax.Array], tuple[T, Results]]) -> tuple[T, Results]:
        kept, results = fn(jnp.int32(0))
        return kept, jax.tree.map(lambda leaf: leaf[None], results)

    def on_each(self, fn: Fitness) -> Callable[[Leaves], Evaluated]:
        return fn

    def agreed(self, fn: Fitness) -> Fitness:
        return fn

    def mine(self, count: int) -> np.ndarray:
        return np.ones(count, np.bool_)

    def own(self, values: jax.Array, fill: int = 0) -> jax.Array:
        del fill
        return values

    def beside_members(self, leaves: T) -> T:
        return leaves

    def share(self, genome: Leaves) -> Leaves:
        return genome

    def land(
        self, sum_of: Sum, zeros: Leaves, genome: Genome, fitness: jax.Array, add: Land
    ) -> Leaves:
        # Always runs. XLA, which cannot know, keeps no sum of parameters and updates from before
        # the selection until here, nor does it compute the child anew in its evaluation,
        # rounded in another way.
        def once(total: Leaves, genome: Genome) -> Leaves:
            total = sum_of(genome, total)
            landed = add(genome.leaves(), total)
            return tuple(leaf.astype(by.dtype) for leaf, by in zip(landed, total, strict=True))

        return xla.at_most_once(~xla.impossible(fitness), once, zeros, genome)


class Lanes(NamedTuple):
    """A program for a whole mesh, which XLA divides; the model is in no manual region.

    XLA divides what is vectorised and not what is repeated: the lanes are an axis of
    `jax.vmap`, pinned to the axis of the mesh.

    Attributes:
        axis: name of the axis of the mesh.
        devices: its size.
        mesh: the mesh.
        divisible: for each entry of a genome whether its noise is drawn alike with a side split
            in two; else every device sums all of it.
    """

    axis: str
    devices: int
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    divisible: tuple[bool, ...]

    def each(self, fn: Callable[[jax.Array], tuple[T, Results]]) -> tuple[T, Results]:
        lanes = self._pinned(jnp.arange(self.devices, dtype=jnp.int32), 0, self.axis)
        nothing, results = jax.vmap(fn, spmd_axis_name=self._spmd_axis_name)(lanes)
        return nothing, jax.tree.map(lambda leaf: self._pinned(leaf, 0, None), results)

    def on_each(self, fn: Fitness) -> Callable[[Leaves], Evaluated]:
        def on_lanes(leaves: Leaves) -> Evaluated:
            copies = tuple(jnp.broadcast_to(leaf, (self.devices, *leaf.shape)) for leaf in leaves)
            lanes = tuple(self._pinned(copy, 0, self.axis) for copy in copies)
            counts = self._pinned(jnp.arange(self.devices) == 0, 0, self.axis)
            results = jax.vmap(fn, spmd_axis_name=self._spmd_axis_name)(lanes, counts)
            first: Evaluated = jax.tree.map(lambda leaf: self._pinned(leaf, 0, None)[0], results)
            return first

        return on_lanes

    def agreed(self, fn: Fitness) -> Fitness:
        return fn

    def mine(self, count: int) -> np.ndarray:
        return np.ones(count, np.bool_)

    def own(self, values: jax.Array, fill: int = 0) -> jax.Array:
        del fill
        return values

    def beside_members(self, leaves: T) -> T:
        return leaves

    def share(self, genome: Leaves) -> Leaves:
        return tuple(map(self._divided, genome, self._sides(genome)))

    def land(
        self, sum_of: Sum, zeros: Leaves, genome: Genome, fitness: jax.Array, add: Land
    ) -> Leaves:
        del fitness
        whole = genome.leaves()
        shared = genome.in_form(self.share)
        landed = add(shared.params, sum_of(shared, zeros))
        return tuple(map(self._whole, landed, whole, self._sides(whole)))

    @property
    def _explicit(self) -> bool:
        kind: AxisType = self.mesh.axis_types[self.mesh.axis_names.index(self.axis)]
        return kind == AxisType.Explicit

    @property
    def _spmd_axis_name(self) -> str | None:
        return None if self._explicit else self.axis

    def _divided(self, leaf: jax.Array, at: int | None) -> jax.Array:
        """The leaf with one side split in two, the second as long as the axis and on it.

        Nothing changes place: other axes of the mesh go on to shard the first of the two.
        """
        if at is None:
            return leaf
        sides = leaf.shape[at] // self.devices, self.devices
        shape = (*leaf.shape[:at], *sides, *leaf.shape[at + 1 :])
        spec = _spec(leaf)
        split = _reshaped(leaf, shape, (*spec[: at + 1], None, *spec[at + 1 :]))
        return self._pinned(split, at + 1, self.axis)

    def _whole(self, part: jax.Array, leaf: jax.Array, at: int | None) -> jax.Array:
        if at is None:
            return part
        return _reshaped(self._pinned(part, at + 1, None), leaf.shape, _spec(leaf))

    def _sides(self, genome: Leaves) -> list[int | None]:
        """The side of each entry that is divided; None where it stays whole, as stacks do."""
        pairs = zip(genome, self.divisible, strict=True)
        return [self._side(leaf) if divisible else None for leaf, divisible in pairs]

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

    def each(self, fn: Callable[[jax.Array], tuple[T, Results]]) -> tuple[T, Results]:
        index = lax.axis_index(self.axis)

        def gathered(own: jax.Array) -> jax.Array:
            # Not `all_gather`, whose result counts as another one on every device.
            zeros = jnp.zeros((self.devices, *own.shape), own.dtype)
            results: jax.Array = lax.psum(zeros.at[index].set(own), self.axis)
            return results

        nothing, own = fn(index)
        return nothing, jax.tree.map(gathered, own)

    def on_each(self, fn: Fitness) -> Callable[[Leaves], Evaluated]:
        return self.agreed(fn)

    def agreed(self, fn: Fitness) -> Fitness:
        def of_first(genome: Leaves, counts: jax.Array | None = None) -> Evaluated:
            first = lax.axis_index(self.axis) == 0
            found = fn(genome, first if counts is None else first & counts)
            agreed: Evaluated = jax.tree.map(
                lambda leaf: lax.psum(jnp.where(first, leaf, jnp.zeros_like(leaf)), self.axis),
                found,
            )
            return agreed

        return of_first

    def mine(self, count: int) -> jax.Array:
        return jnp.arange(count) % self.devices == lax.axis_index(self.axis)

    def own(self, values: jax.Array, fill: int = 0) -> jax.Array:
        most = math.ceil(values.size / self.devices)
        own = lax.axis_index(self.axis) + self.devices * jnp.arange(most)
        return values.at[own].get(mode="fill", fill_value=fill)

    def beside_members(self, leaves: T) -> T:
        varying: T = jax.tree.map(lambda leaf: lax.pcast(leaf, self.axis, to="varying"), leaves)
        return varying

    def share(self, genome: Leaves) -> Leaves:
        return self.beside_members(genome)

    def land(
        self, sum_of: Sum, zeros: Leaves, genome: Genome, fitness: jax.Array, add: Land
    ) -> Leaves:
        del fitness
        whole = genome.leaves()
        total = sum_of(genome.in_form(self.share), zeros)
        return add(whole, lax.psum(total, self.axis))


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
