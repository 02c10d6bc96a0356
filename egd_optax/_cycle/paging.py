"""Where the elites of a cycle live: pinned host memory, the device, or nowhere.

A *page* holds the moving leaves of one elite. There are `k` pages, each a buffer
of its own and replaced whole: a stacked `[k, ...]` buffer on the host would need
dynamic slices of host memory, which XLA:GPU runs as slow host compute or refuses.

All three kinds offer the same four operations:

    blank(genome)                 -> the k pages, not yet written
    write(pages, page, genome, on)-> the pages with `page` replaced where `on`
    visit(pages, members, on, fn, carry)
                                  -> carry[at] = fn(page, at, leaf, carry[at]) for every leaf of
                                     every page, page by page, where `on[page]`
    read(pages, page, member, on, buffer)
                                  -> what is on `page`, `member`, where `on`, else the buffer
"""

from collections.abc import Callable
import functools
from typing import NamedTuple, Protocol
import warnings

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle.blank import unwritten
from egd_optax._cycle.branch import when
from egd_optax._cycle.mutate import Mutants
from egd_optax._cycle.snapshot import Leaves

Pages = tuple[Leaves, ...]
Visitor = Callable[[jax.Array, int, jax.Array, jax.Array], jax.Array]


class Paging(Protocol):
    """Storage of the elites while a cycle runs; no elite outlives it."""

    def blank(self, genome: Leaves) -> Pages:
        """The pages at the start of a cycle."""

    def write(self, pages: Pages, page: jax.Array, genome: Leaves, on: jax.Array) -> Pages:
        """Puts `genome` on `page` where `on` holds."""

    def visit(
        self, pages: Pages, members: jax.Array, on: jax.Array, fn: Visitor, carry: Leaves
    ) -> Leaves:
        """Folds `fn` over the pages for which `on[page]` holds, in page order."""

    def read(
        self, pages: Pages, page: jax.Array, member: jax.Array, on: jax.Array, buffer: Leaves
    ) -> Leaves:
        """The member, no parent, on a page where `on` holds, in a buffer like the genome."""


class OnDevice(NamedTuple):
    """Pages in device memory.

    Attributes:
        size: the number of pages.
    """

    size: int

    def blank(self, genome: Leaves) -> Pages:
        # Not `lax.empty`: on a mesh XLA:GPU allocates it whole on every device.
        return tuple(tuple(map(jnp.zeros_like, genome)) for _ in range(self.size))

    def write(self, pages: Pages, page: jax.Array, genome: Leaves, on: jax.Array) -> Pages:
        return _written(pages, page, genome, on, lambda leaves: leaves)

    def visit(
        self, pages: Pages, members: jax.Array, on: jax.Array, fn: Visitor, carry: Leaves
    ) -> Leaves:
        del members
        # One pass over the carry for all pages.
        for page, stored in enumerate(pages):
            pairs = enumerate(zip(stored, carry, strict=True))
            visited = tuple(fn(jnp.int32(page), at, *pair) for at, pair in pairs)
            carry = optax.tree.where(on[page], visited, carry)
        return carry

    def read(
        self, pages: Pages, page: jax.Array, member: jax.Array, on: jax.Array, buffer: Leaves
    ) -> Leaves:
        del member
        for at, stored in enumerate(pages):
            buffer = when(on & (page == at), lambda _, found: found, buffer, stored)
        return buffer


class OnHost(NamedTuple):
    """Pages in pinned host memory.

    Attributes:
        size: the number of pages.
        mutants: the members.
    """

    size: int
    mutants: Mutants

    def blank(self, genome: Leaves) -> Pages:
        return tuple(_to_host(tuple(map(unwritten, genome))) for _ in range(self.size))

    def write(self, pages: Pages, page: jax.Array, genome: Leaves, on: jax.Array) -> Pages:
        return _written(pages, page, genome, on, _to_host)

    def visit(
        self, pages: Pages, members: jax.Array, on: jax.Array, fn: Visitor, carry: Leaves
    ) -> Leaves:
        del members

        def body(page: jax.Array, values: Leaves, stored: Leaves) -> Leaves:
            results: list[jax.Array] = []
            for at, (leaf, value) in enumerate(zip(stored, values, strict=True)):
                if results:  # or XLA:GPU fetches all leaves at once, and holds a whole page
                    leaf, results[-1] = lax.optimization_barrier((leaf, results[-1]))
                fetched = jax.device_put(leaf, jax.memory.Space.Device)
                results.append(fn(page, at, fetched, value))
            return tuple(results)

        for at, stored in enumerate(pages):
            carry = when(on[at], functools.partial(body, jnp.int32(at)), carry, stored)
        return carry

    def read(
        self, pages: Pages, page: jax.Array, member: jax.Array, on: jax.Array, buffer: Leaves
    ) -> Leaves:
        del pages, page
        return redrawn(self.mutants, member, on, buffer)  # over the link only what is summed


class Replayed(NamedTuple):
    """No pages at all: an elite is drawn again from its key when it is visited.

    Attributes:
        size: the number of elites.
        mutants: the members.
    """

    size: int
    mutants: Mutants

    def blank(self, genome: Leaves) -> Pages:
        del genome
        return ()

    def write(self, pages: Pages, page: jax.Array, genome: Leaves, on: jax.Array) -> Pages:
        del page, genome, on
        return pages

    def visit(
        self, pages: Pages, members: jax.Array, on: jax.Array, fn: Visitor, carry: Leaves
    ) -> Leaves:
        del pages

        def visit_page(page: jax.Array, values: Leaves) -> Leaves:
            def body(values: Leaves, member: jax.Array) -> Leaves:
                pairs = zip(self.mutants.member(member), values, strict=True)
                return tuple(fn(page, at, *pair) for at, pair in enumerate(pairs))

            return when(on[page], body, values, members[page])

        result: Leaves = lax.fori_loop(0, self.size, visit_page, carry)
        return result

    def read(
        self, pages: Pages, page: jax.Array, member: jax.Array, on: jax.Array, buffer: Leaves
    ) -> Leaves:
        del pages, page
        return redrawn(self.mutants, member, on, buffer)


def redrawn(mutants: Mutants, member: jax.Array, on: jax.Array, buffer: Leaves) -> Leaves:
    """A member but the parent, drawn into the buffer, where `on`; else the buffer."""
    return mutants.draw(jnp.where(on, member, 0), buffer)


def make_paging(memory: str, count: int, mutants: Mutants) -> Paging:
    """The paging of a memory mode, "host", "device" or "replay"."""
    if memory == "replay":
        return Replayed(count, mutants)
    if memory == "host" and pages_to_host():
        return OnHost(count, mutants)
    return OnDevice(count)


def pages_to_host() -> bool:
    """Whether "host" means a transfer on the platform that the program is for.

    On CPU it does not: device memory is host memory, and a transfer would only make
    JAX commit the outputs of the program, hence compile a step that started from
    uncommitted parameters a second time. A mesh of another platform, set with
    `jax.set_mesh` to compile ahead of time, counts as that platform.
    """
    target = jax.sharding.get_abstract_mesh().abstract_device
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return target is not None and target.platform != "cpu"
    return has_pinned_host(device)


@functools.cache
def has_pinned_host(device: jax.Device) -> bool:
    """Whether a device addresses pinned host memory; warns, once, if it does not."""
    if any(memory.kind == "pinned_host" for memory in device.addressable_memories()):
        return True
    warnings.warn(
        f'memory="host": the platform {device.platform!r} has no pinned host memory, so '
        'elites stay on the device. Pass memory="replay" to store no elite at all, or '
        'memory="device" to keep them there without this warning.',
        stacklevel=2,
    )
    return False


def _written(
    pages: Pages,
    page: jax.Array,
    genome: Leaves,
    on: jax.Array,
    place: Callable[[Leaves], Leaves],
) -> Pages:
    return tuple(
        when(on & (page == at), lambda _, new: place(new), old, genome)
        for at, old in enumerate(pages)
    )


def _to_host(leaves: Leaves) -> Leaves:
    return tuple(jax.device_put(leaf, jax.memory.Space.Host) for leaf in leaves)
