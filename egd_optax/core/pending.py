"""Sums like leaves that are not made yet, so that few of them are held at a time."""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax

from egd_optax.backend import arithmetic, xla
from egd_optax.backend.devices import Devices, alike
from egd_optax.backend.packing import Arrays
from egd_optax.backend.products import part_of

T = TypeVar("T")


class Pending(NamedTuple):
    """A sum in one block that is not made yet.

    Attributes:
        of: pytree of arrays; the number of draws if there are several parts.
        make: makes the sum of these. If there are several parts, it makes one of them, and also
            gets its number.
        parts: how many parts of the layers of the block are made one after the other.
    """

    of: Any
    make: Callable[..., jax.Array]
    parts: int = 1


def settled(
    pending: Pending, block: jax.Array, then: Callable[[jax.Array], T], devices: Devices
) -> T:
    """Makes a sum like a block, or each of its parts, and returns what `then` makes of these."""

    def settle(block: jax.Array, *part: jax.Array) -> T:
        # Else each device might hold whole sums, and send them.
        return then(devices.sum(alike(pending.make(pending.of, *part), block)))

    if pending.parts == 1:
        return settle(block)

    def put(part: jax.Array, whole: T) -> T:
        found = settle(part_of(block, part, pending.parts, axis=1), part)
        first = part * (block.shape[1] // pending.parts)
        result: T = jax.tree.map(
            lambda all_, own: lax.dynamic_update_slice_in_dim(all_, own, first, 1), whole, found
        )
        return result

    (trips,) = jax.tree.leaves(pending.of)
    of_part = jax.eval_shape(settle, part_of(block, 0, pending.parts, axis=1), trips)
    blank = jax.tree.map(
        lambda own: alike(xla.zeros_after(block, trips, own.dtype), block), of_part
    )
    filled: T = xla.loop(0, pending.parts, put, blank)
    return filled


def made(totals: Arrays, blocks: Sequence[int]) -> dict[int, Pending]:
    """Sums that are made, by their blocks."""
    return {
        at: Pending(total, lambda total: total) for at, total in zip(blocks, totals, strict=True)
    }


def together_or_alone(
    sums: Callable[[Sequence[int]], Arrays],
    one: Callable[[int], Pending],
    blocks: Iterable[int],
    alone: Container[int],
) -> dict[int, Pending]:
    """The sums in blocks: of most made together, of those that are alone each in its turn.

    Args:
        sums: makes the sums in some of the blocks.
        one: the sum in a block that is alone.
        blocks: all.
        alone: the blocks with a program of their own.
    """
    blocks = tuple(blocks)
    together = tuple(at for at in blocks if at not in alone)
    found = made(sums(together), together) if together else {}
    return found | {at: one(at) for at in blocks if at in alone}


def zeros_like(
    make: Callable[[jax.Array, jax.Array, Any], jax.Array],
    like: Iterable[jax.Array],
    trips: jax.Array,
    devices: Devices,
) -> Arrays:
    """Zeros to add to, in the dtypes of sums, by `xla.zeros_in` or `xla.zeros_after`."""
    zeros: Arrays = devices.varying(
        tuple(make(leaf, trips, arithmetic.sum_dtype(leaf.dtype)) for leaf in like)
    )
    return zeros
