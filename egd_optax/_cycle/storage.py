"""Where the elites of a cycle live: in pinned host memory, on the device, or nowhere.

A *page* holds the mutating leaves of one elite. There are `k` pages, each a buffer of its own
and replaced whole: a stacked `[k, ...]` buffer on the host would need dynamic slices of host
memory, which XLA:GPU runs as slow host compute or refuses.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple, Protocol
import warnings

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import xla
from egd_optax._cycle.elites import Elites, no_elites, with_member
from egd_optax._cycle.members import Members
from egd_optax._cycle.platform import platform
from egd_optax._cycle.spec import Leaves

# Maps a slot, a position in the genome, that leaf of the elite and a value to the next value.
Fold = Callable[[jax.Array, int, jax.Array, jax.Array], jax.Array]


class Storage(Protocol):
    """Where the pages of the elites are while a cycle runs; no elite outlives it."""

    def start(self, genome: Leaves) -> Elites | None:
        """Empty slots to insert members into as they are scored; None if nothing is stored."""

    def insert(
        self, elites: Elites, member: jax.Array, fitness: jax.Array, leaves: Leaves
    ) -> Elites:
        """Keeps a member if it is among the best; the parent is at hand, and never written."""

    def fold(
        self, elites: Elites, members: Members, on: jax.Array, fn: Fold, values: Leaves
    ) -> Leaves:
        """Folds `values[at] = fn(slot, at, leaf, values[at])` over the elites with `on[slot]`.

        They are among `members`.

        In the order of the slots, so that a sum over the elites is the same to the bit wherever
        they are. The parent must be left out.
        """

    def read(
        self,
        elites: Elites | None,
        members: Members,
        member: jax.Array,
        on: jax.Array,
        buffer: Leaves,
    ) -> Leaves:
        """An elite, not the parent, where `on` holds, in a buffer like the genome; else that."""


class OnDevice(NamedTuple):
    """Pages in device memory.

    Attributes:
        size: the number of pages.
    """

    size: int

    def start(self, genome: Leaves) -> Elites:
        # Not `lax.empty`: on a mesh XLA:GPU allocates it whole on every device.
        return no_elites(
            self.size, tuple(tuple(map(jnp.zeros_like, genome)) for _ in range(self.size))
        )

    def insert(
        self, elites: Elites, member: jax.Array, fitness: jax.Array, leaves: Leaves
    ) -> Elites:
        return _written(elites, member, fitness, leaves, lambda leaves: leaves)

    def fold(
        self, elites: Elites, members: Members, on: jax.Array, fn: Fold, values: Leaves
    ) -> Leaves:
        del members
        # One pass over the values for all pages.
        for slot, page in enumerate(elites.pages):
            pairs = enumerate(zip(page, values, strict=True))
            folded = tuple(fn(jnp.int32(slot), at, *pair) for at, pair in pairs)
            values = optax.tree.where(on[slot], folded, values)
        return values

    def read(
        self,
        elites: Elites | None,
        members: Members,
        member: jax.Array,
        on: jax.Array,
        buffer: Leaves,
    ) -> Leaves:
        del members
        assert elites is not None  # narrows the type: pages are stored
        for slot, page in enumerate(elites.pages):
            here = on & (elites.member[slot] == member)
            buffer = xla.at_most_once(here, lambda _, found: found, buffer, page)
        return buffer


class OnHost(NamedTuple):
    """Pages in pinned host memory.

    Attributes:
        size: the number of pages.
    """

    size: int

    def start(self, genome: Leaves) -> Elites:
        pages = tuple(_to_host(tuple(map(xla.unwritten, genome))) for _ in range(self.size))
        return no_elites(self.size, pages)

    def insert(
        self, elites: Elites, member: jax.Array, fitness: jax.Array, leaves: Leaves
    ) -> Elites:
        return _written(elites, member, fitness, leaves, _to_host)

    def fold(
        self, elites: Elites, members: Members, on: jax.Array, fn: Fold, values: Leaves
    ) -> Leaves:
        del members

        def body(slot: jax.Array, values: Leaves, page: Leaves) -> Leaves:
            results: list[jax.Array] = []
            for at, (leaf, value) in enumerate(zip(page, values, strict=True)):
                if results:
                    leaf, results[-1] = xla.fetched_after(leaf, results[-1])
                fetched = jax.device_put(leaf, jax.memory.Space.Device)
                results.append(fn(slot, at, fetched, value))
            return tuple(results)

        for slot, page in enumerate(elites.pages):
            one = functools.partial(body, jnp.int32(slot))
            values = xla.at_most_once(on[slot], one, values, page)
        return values

    def read(
        self,
        elites: Elites | None,
        members: Members,
        member: jax.Array,
        on: jax.Array,
        buffer: Leaves,
    ) -> Leaves:
        del elites
        return members.redrawn(member, on, buffer)  # over the link only what is summed


class Nowhere(NamedTuple):
    """No pages at all: a member is drawn again from its key wherever it is needed."""

    def start(self, genome: Leaves) -> None:
        del genome

    def insert(
        self, elites: Elites, member: jax.Array, fitness: jax.Array, leaves: Leaves
    ) -> Elites:
        del member, fitness, leaves
        return elites

    def fold(
        self, elites: Elites, members: Members, on: jax.Array, fn: Fold, values: Leaves
    ) -> Leaves:
        def fold_slot(slot: jax.Array, values: Leaves) -> Leaves:
            def body(values: Leaves, member: jax.Array) -> Leaves:
                pairs = zip(members.member(member), values, strict=True)
                return tuple(fn(slot, at, *pair) for at, pair in enumerate(pairs))

            return xla.at_most_once(on[slot], body, values, elites.member[slot])

        result: Leaves = lax.fori_loop(0, on.size, fold_slot, values)
        return result

    def read(
        self,
        elites: Elites | None,
        members: Members,
        member: jax.Array,
        on: jax.Array,
        buffer: Leaves,
    ) -> Leaves:
        del elites
        return members.redrawn(member, on, buffer)


def storage_of(memory: str | None, count: int | None) -> Storage:
    """The storage of a memory mode, "host", "device" or "replay"; None: no elite is kept."""
    if memory is None or memory == "replay" or count is None:
        return Nowhere()
    if memory == "host" and pages_to_host():
        return OnHost(count)
    return OnDevice(count)


def pages_to_host() -> bool:
    """Whether "host" means a transfer on the platform that the program is for.

    On CPU it does not: device memory is host memory, and a transfer would only make
    JAX commit the outputs of the program, hence compile a step that started from
    uncommitted parameters a second time.
    """
    if platform() == "cpu":
        return False
    device = jax.local_devices()[0]  # a CPU that compiles for what is not here
    return device.platform == "cpu" or has_pinned_host(device)


@functools.cache
def has_pinned_host(device: jax.Device) -> bool:
    """Whether a device addresses pinned host memory; warns, once, if it does not."""
    if any(memory.kind == "pinned_host" for memory in device.addressable_memories()):
        return True
    warnings.warn(
        f'memory="host": the platform {device.platform!r} has no pinned host memory, so '
        'elites stay on the device. Pass Execution(memory="replay") to store no elite at all, or '
        'Execution(memory="device") to keep them there without this warning.',
        stacklevel=2,
    )
    return False


def _written(
    elites: Elites,
    member: jax.Array,
    fitness: jax.Array,
    leaves: Leaves,
    place: Callable[[Leaves], Leaves],
) -> Elites:
    elites, taken = with_member(elites, member, fitness)
    pages = tuple(
        xla.at_most_once((taken == slot) & (member > 0), lambda _, new: place(new), page, leaves)
        for slot, page in enumerate(elites.pages)
    )
    return elites._replace(pages=pages)


def _to_host(leaves: Leaves) -> Leaves:
    return tuple(jax.device_put(leaf, jax.memory.Space.Host) for leaf in leaves)
