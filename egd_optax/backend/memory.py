"""Pages: copies of a tuple of arrays, kept in device memory, in pinned host memory, or nowhere."""

from collections.abc import Callable
import functools
from typing import Any, TypeVar
import warnings

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import xla
from egd_optax.backend.devices import zeros_beside
from egd_optax.backend.unwritten import unwritten

T = TypeVar("T")
Arrays = tuple[jax.Array, ...]
# More pages than this are not kept on the host: each one is a piece of program of its own.
MOST_HOST_PAGES = 32


class Memory:
    """A place that keeps pages; subclass it for another place.

    Attributes:
        keeps: whether anything is kept. If not, whoever needs a page makes it again.
    """

    keeps: bool = True

    def empty(self, like: Arrays, count: int) -> Any:
        """Returns `count` pages that nobody has written, each like `like`; a pytree of arrays."""
        raise NotImplementedError

    def put(self, pages: Any, slot: jax.Array, leaves: Arrays) -> Any:
        """Returns the pages with `leaves` in one; in none if `slot` is the number of pages."""
        raise NotImplementedError

    def get(self, pages: Any, slot: jax.Array) -> Arrays:
        """Returns the leaves of a page, on the device."""
        raise NotImplementedError

    def fold(
        self, pages: Any, on: jax.Array, fn: Callable[[T, jax.Array, Arrays], T], carry: T
    ) -> T:
        """Returns `carry = fn(carry, slot, leaves)` for every slot with `on[slot]`, in order.

        `fn` gets leaves as they are kept, and calls `fetch` for each.
        """

        def one(slot: jax.Array, carry: T) -> T:
            def step(carry: T, slot: jax.Array, pages: Any) -> T:
                return fn(carry, slot, self.get(pages, slot))

            return xla.run_if(on[slot], step, carry, slot, pages)

        return xla.loop(0, on.size, one, carry)

    def fetch(self, leaf: jax.Array, previous: T) -> tuple[jax.Array, T]:
        """Returns a leaf of a page on the device, after `previous` is computed; and `previous`."""
        return leaf, previous


class Nowhere(Memory):
    """Keeps nothing."""

    keeps = False


class Device(Memory):
    """Keeps pages in device memory, one buffer `[count, ...]` for each array."""

    def empty(self, like: Arrays, count: int) -> Arrays:
        """Returns zeros."""
        return tuple(zeros_beside(leaf, count) for leaf in like)

    def put(self, pages: Arrays, slot: jax.Array, leaves: Arrays) -> Arrays:
        """Returns the pages with one replaced."""
        if not pages:
            return pages

        def write(pages: Arrays, slot: jax.Array, leaves: Arrays) -> Arrays:
            pairs = zip(pages, leaves, strict=True)
            return tuple(lax.dynamic_update_index_in_dim(page, new, slot, 0) for page, new in pairs)

        return xla.run_if(slot < pages[0].shape[0], write, pages, slot, leaves)

    def get(self, pages: Arrays, slot: jax.Array) -> Arrays:
        """Returns a slice of each buffer."""
        return tuple(lax.dynamic_index_in_dim(page, slot, 0, keepdims=False) for page in pages)


class PinnedHost(Memory):
    """Keeps pages in pinned host memory, each array of each page in a buffer of its own.

    A page is replaced whole: XLA:GPU runs dynamic slices of a host buffer on the host, or refuses.
    """

    def empty(self, like: Arrays, count: int) -> tuple[Arrays, ...]:
        """Returns buffers without numbers: zeros would cross the link first."""
        return tuple(_to_host(tuple(map(unwritten, like))) for _ in range(count))

    def put(self, pages: tuple[Arrays, ...], slot: jax.Array, leaves: Arrays) -> tuple[Arrays, ...]:
        """Returns the pages with one replaced."""
        return tuple(
            xla.run_if(slot == at, lambda _, new: _to_host(new), page, leaves)
            for at, page in enumerate(pages)
        )

    def fold(
        self,
        pages: tuple[Arrays, ...],
        on: jax.Array,
        fn: Callable[[T, jax.Array, Arrays], T],
        carry: T,
    ) -> T:
        """Returns the carry; each page has a piece of program of its own."""
        for at, page in enumerate(pages):
            step = functools.partial(_step, fn, at)
            carry = xla.run_if(on[at], step, carry, page)
        return carry

    def fetch(self, leaf: jax.Array, previous: T) -> tuple[jax.Array, T]:
        """Returns the leaf on the device: one leaf of a page at a time is on its way."""
        leaf, previous = xla.fetch_after(leaf, previous)
        return jax.device_put(leaf, jax.memory.Space.Device), previous


def _step(fn: Callable[[T, jax.Array, Arrays], T], at: int, carry: T, page: Arrays) -> T:
    return fn(carry, jnp.int32(at), page)


def memory_of(mode: str | Memory, count: int) -> Memory:
    """Returns the memory of a mode, "host", "device" or "replay", for so many pages.

    A memory is returned as it is, for as many pages as are asked of it.
    """
    if isinstance(mode, Memory):
        return mode
    if mode == "replay" or (mode == "host" and count > MOST_HOST_PAGES):
        return Nowhere()
    return PinnedHost() if mode == "host" and pages_to_host() else Device()


def pages_to_host() -> bool:
    """Whether "host" means a transfer on the platform that the program is for.

    On CPU device memory is host memory. A transfer would only make JAX commit the outputs of the
    program, and compile a step that started from uncommitted parameters a second time.
    """
    if platform() == "cpu":
        return False
    device = jax.local_devices()[0]  # a CPU that compiles for what is not here
    return device.platform == "cpu" or has_pinned_host(device)


def platform() -> str:
    """The platform that the program is for: "cpu", "gpu", "tpu".

    A mesh of another platform, set with `jax.set_mesh` to compile ahead of time, counts as that.
    """
    target = jax.sharding.get_abstract_mesh().abstract_device
    here: str = jax.local_devices()[0].platform
    return here if target is None else str(target.platform)


@functools.cache
def has_pinned_host(device: jax.Device) -> bool:
    """Whether a device addresses pinned host memory; warns, once, if it does not."""
    if any(memory.kind == "pinned_host" for memory in device.addressable_memories()):
        return True
    warnings.warn(
        f'memory="host": the platform {device.platform!r} has no pinned host memory, so '
        'pages stay on the device. Pass Execution(memory="replay") to keep none at all, or '
        'Execution(memory="device") to keep them there without this warning.',
        stacklevel=2,
    )
    return False


def _to_host(leaves: Arrays) -> Arrays:
    return tuple(jax.device_put(leaf, jax.memory.Space.Host) for leaf in leaves)
