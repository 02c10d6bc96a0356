"""Where the elites of a cycle live: pinned host memory, the device, or nowhere.

A *page* holds the moving leaves of one elite. There are `k` pages, each a buffer
of its own and replaced whole: a stacked `[k, ...]` buffer on the host would need
dynamic slices of host memory, which XLA:GPU runs as slow host compute or refuses.

All three kinds offer the same three operations:

    blank(genome)                 -> the k pages, not yet written
    write(pages, page, genome, on)-> the pages with `page` replaced where `on`
    visit(pages, members, on, fn, carry)
                                  -> carry[at] = fn(page, at, leaf, carry[at]) for every leaf of
                                     every page, page by page, where `on[page]`
"""

from collections.abc import Callable
import functools
from typing import NamedTuple, Protocol
import warnings

import jax
from jax import lax
import jax.numpy as jnp

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


class Buffered(NamedTuple):
    """Pages that are buffers: in device memory, or in pinned host memory.

    Attributes:
        size: the number of pages.
        on_host: whether they are in pinned host memory, else on the device.
    """

    size: int
    on_host: bool

    def blank(self, genome: Leaves) -> Pages:
        return tuple(self._place(_unwritten(genome)) for _ in range(self.size))

    def write(self, pages: Pages, page: jax.Array, genome: Leaves, on: jax.Array) -> Pages:
        return tuple(
            when(on & (page == at), lambda _, new: self._place(new), old, genome)
            for at, old in enumerate(pages)
        )

    def visit(
        self, pages: Pages, members: jax.Array, on: jax.Array, fn: Visitor, carry: Leaves
    ) -> Leaves:
        del members
        for at, stored in enumerate(pages):

            def body(values: Leaves, stored: Leaves, page: int = at) -> Leaves:
                results: list[jax.Array] = []
                for at, (leaf, value) in enumerate(zip(stored, values, strict=True)):
                    if results:  # or XLA:GPU fetches all leaves at once, and holds a whole page
                        leaf, results[-1] = lax.optimization_barrier((leaf, results[-1]))
                    results.append(fn(jnp.int32(page), at, self._fetch(leaf), value))
                return tuple(results)

            carry = when(on[at], body, carry, stored)
        return carry

    def _place(self, genome: Leaves) -> Leaves:
        if not self.on_host:
            return genome
        return tuple(jax.device_put(leaf, jax.memory.Space.Host) for leaf in genome)

    def _fetch(self, stored: jax.Array) -> jax.Array:
        return jax.device_put(stored, jax.memory.Space.Device) if self.on_host else stored


class Replayed(NamedTuple):
    """No pages at all: an elite is drawn again from its key when it is visited.

    Attributes:
        size: the number of elites.
        member: draws a member, see `Mutants`.
    """

    size: int
    member: Callable[[jax.Array], Leaves]

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
                pairs = zip(self.member(member), values, strict=True)
                return tuple(fn(page, at, *pair) for at, pair in enumerate(pairs))

            return when(on[page], body, values, members[page])

        result: Leaves = lax.fori_loop(0, self.size, visit_page, carry)
        return result


def make_paging(memory: str, count: int, mutants: Mutants) -> Paging:
    """The paging of a memory mode, "host", "device" or "replay"."""
    if memory == "replay":
        return Replayed(count, mutants.member)
    return Buffered(count, on_host=memory == "host" and pages_to_host())


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


def _unwritten(genome: Leaves) -> Leaves:
    """Buffers like the leaves, never read before they are written: zeros would be a transfer."""
    if jax.sharding.get_abstract_mesh().manual_axes:  # zeros vary over them as the leaf does
        return tuple(map(jnp.zeros_like, genome))
    like = tuple(map(jax.typeof, genome))
    return tuple(lax.empty(leaf.shape, leaf.dtype, out_sharding=leaf.sharding) for leaf in like)
