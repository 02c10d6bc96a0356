"""Recombine: the sums of weight * (member - parent), and of a statistic of their noise."""

from collections.abc import Callable, Container, Iterable, Sequence
import functools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, packing, xla
from egd_optax.backend.devices import Devices, alike
from egd_optax.backend.memory import Memory
from egd_optax.backend.packing import Arrays
from egd_optax.core.population import Candidate, Population
from egd_optax.core.terms import Terms, first_those_that_weigh

T = TypeVar("T")

# Draws whose rows are held and summed at a time: so many, in this part of the memory of the leaves.
_AT_ONCE = 64
_SHARE = 4


class Pending(NamedTuple):
    """A sum that is not made yet.

    Attributes:
        of: pytree of arrays.
        make: makes the sum of these.
    """

    of: Any
    make: Callable[[Any], jax.Array]


def weighted_sums(
    population: Population,
    terms: Terms,
    held: Candidate,
    then: Callable[[int, jax.Array], T],
    *,
    in_turn: bool,
    memory: Memory,
    pages: Any,
    devices: Devices,
) -> list[T]:
    """The sum of weight * (member - parent) in each block, and what becomes of it.

    Args:
        population: the members.
        terms: the terms that this device adds.
        held: a candidate in whose memory to sum.
        then: gets the number of a block and its sum in the dtype of a sum, the same on all devices.
        in_turn: makes a large sum with more digits than its leaf once `then` has returned for the
            one before. Else XLA holds all of them at a time.
        memory: where members are kept.
        pages: their leaves that are kept, None if none are.
        devices: share the terms.

    Returns:
        The results of `then`. Costs a read or a draw for each term.
    """
    params = population.params
    in_turn = in_turn and population.refined is None  # all leaves of a member learn at a time
    wide = {at for at, leaf in enumerate(params) if in_turn and _has_wide_sum(leaf)}
    if pages is None:
        whole = _sums_of_drawn(population, terms, held, wide, devices)
    else:
        whole = _sums_of_pages(population, terms, held, memory, pages, devices)
    sums = whole | _sums_of_rows(population, terms, wide, devices)
    found: dict[int, T] = {}
    before = None
    for at, (of, make) in sums.items():
        if at in wide and before is not None:
            of, found[before] = xla.fetch_after(of, found[before])
        # Else each device might hold whole sums, and send them.
        total = alike(make(of), params[at])
        found[at] = then(at, devices.sum(total))
        before = at if at in wide else before
    return [found[at] for at in range(len(params))]


def _has_wide_sum(leaf: jax.Array) -> bool:
    return leaf.size > packing.LARGEST and arithmetic.sum_dtype(leaf.dtype) != leaf.dtype


def _made(totals: Arrays, blocks: Sequence[int]) -> dict[int, Pending]:
    return {
        at: Pending(total, lambda total: total) for at, total in zip(blocks, totals, strict=True)
    }


def _pending(
    sums: Callable[[Sequence[int], T], Arrays], blocks: Iterable[int], alone: Container[int], of: T
) -> dict[int, Pending]:
    """The sums in blocks: of most made together, of those that are alone each in its turn.

    Args:
        sums: makes the sums in some of the blocks, of arrays.
        blocks: all.
        alone: the blocks with a program of their own.
        of: the arrays.
    """
    blocks = tuple(blocks)
    together = tuple(at for at in blocks if at not in alone)

    def one(at: int) -> Pending:
        return Pending(of, lambda of: sums((at,), of)[0])

    found = _made(sums(together, of), together) if together else {}
    return found | {at: one(at) for at in blocks if at in alone}


def _sums_of_pages(
    population: Population,
    terms: Terms,
    held: Candidate,
    memory: Memory,
    pages: Any,
    devices: Devices,
) -> dict[int, Pending]:
    """The sums in the blocks whose leaves are held, of members that are kept."""
    blocks = population.layout.whole

    def add(totals: Arrays, slot: jax.Array, leaves: Arrays) -> Arrays:
        # The parent is a sum, which XLA would compute before the loop and hold.
        inside, totals = xla.no_hoist(population, totals)
        added: list[jax.Array] = []
        for at, total, leaf in zip(blocks, totals, leaves, strict=True):
            if added:
                leaf, added[-1] = memory.fetch(leaf, added[-1])
            else:
                leaf, total = memory.fetch(leaf, total)
            added.append(_plus(inside, at, total, weights[slot], leaf))
        return tuple(added)

    weights = jnp.zeros_like(terms.weights).at[terms.slots].set(terms.weights)
    zeros = _zeros(xla.zeros_in, held.whole, terms.trips, devices)
    return _made(memory.fold(pages, weights != 0, add, zeros), blocks)


def _sums_of_drawn(
    population: Population, terms: Terms, held: Candidate, alone: Container[int], devices: Devices
) -> dict[int, Pending]:
    """The same of members that are drawn again; some blocks have a loop of their own."""
    buffers = dict(zip(population.layout.whole, held.whole, strict=True))

    def sums(blocks: Sequence[int], terms: Terms) -> Arrays:
        def add(index: jax.Array, totals: Arrays) -> Arrays:
            inside, index = xla.no_hoist(population, index)
            member, weight = terms.members[index], terms.weights[index]
            draw = inside.draw_of(member)
            leaves = [inside.drawn(at, draw) for at in blocks]
            if inside.mirrors:
                mirrored = inside.is_mirrored(member)
                leaves = [
                    jnp.where(mirrored, inside.mirrored(at, leaf, draw), leaf)
                    for at, leaf in zip(blocks, leaves, strict=True)
                ]
            learned = inside.learned(tuple(leaves), member, ~xla.opaque_false(member))
            return tuple(
                _plus(inside, at, total, weight, leaf)
                for at, total, leaf in zip(blocks, totals, learned, strict=True)
            )

        zeros = _zeros(xla.zeros_in, [buffers[at] for at in blocks], terms.trips, devices)
        return xla.loop(0, terms.trips, add, zeros)

    return _pending(sums, buffers, alone, terms)


def _plus(
    population: Population, at: int, total: jax.Array, weight: jax.Array, leaf: jax.Array
) -> jax.Array:
    """The total plus weight * (member - parent) in one block."""
    deviation = leaf.astype(total.dtype) - population.parent_block(at).astype(total.dtype)
    return total + xla.round_for_fma(weight.astype(total.dtype) * deviation)


def _zeros(
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


def _sums_of_rows(
    population: Population, terms: Terms, alone: Container[int], devices: Devices
) -> dict[int, Pending]:
    """The sums in the blocks in rows; few draws at a time, to take less memory than the leaves.

    If they are drawn in several chunks, they are drawn again for each block that is alone.
    """
    layout = population.layout
    if not layout.in_rows:
        return {}
    entries = sum(leaf.size for leaf in population.params)
    total = terms.weights.size
    size = min(total, _AT_ONCE, max(1, entries // (_SHARE * packing.LENGTH * layout.row_count)))
    chunks = -(-total // size)
    size = -(-total // chunks)
    signs = population.sign_of(terms.members).astype(terms.weights.dtype)
    more = (0, chunks * size - total)
    members = jnp.pad(terms.members, more, constant_values=1)
    weights = jnp.pad(signs * terms.weights, more)

    def drawn(chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        def put(index: jax.Array, rows: jax.Array) -> jax.Array:
            return rows.at[index].set(population.rows_of(members[chunk * size + index]))

        blank = devices.varying(jnp.zeros((size, layout.row_count, packing.LENGTH), jnp.float32))
        rows = xla.loop(0, jnp.clip(terms.trips - chunk * size, 0, size), put, blank)
        return rows, lax.dynamic_slice_in_dim(weights, chunk * size, size)

    def one(at: int, drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
        return population.perturbation.weighted_sum(at, *drawn)

    if chunks == 1:  # without zeros to add to, which would be a copy
        rows = drawn(jnp.int32(0))
        return {at: Pending(rows, functools.partial(one, at)) for at in layout.in_rows}

    def sums(blocks: Sequence[int], trips: jax.Array) -> Arrays:
        def add(chunk: jax.Array, totals: Arrays) -> Arrays:
            of_chunk = drawn(chunk)
            pairs = zip(blocks, totals, strict=True)
            return tuple(total + one(at, of_chunk) for at, total in pairs)

        zeros = _zeros(xla.zeros_after, [population.params[at] for at in blocks], trips, devices)
        return xla.loop(0, -(-trips // size), add, zeros)

    return _pending(sums, layout.in_rows, alone, terms.trips)


def statistic_of(
    statistic: Callable[[jax.Array], jax.Array],
    population: Population,
    weights: jax.Array,
    devices: Devices,
) -> Arrays:
    """The sum of weight * `statistic(noise)` over the members, in each block.

    Costs a draw for each member with a weight.
    """
    members = jnp.arange(1, weights.size, dtype=jnp.int32)
    terms = first_those_that_weigh(members, weights[1:], devices)

    def add(index: jax.Array, totals: Arrays) -> Arrays:
        inside, index = xla.no_hoist(population, index)
        member = terms.members[index]
        sign, weight = inside.sign_of(member), terms.weights[index]
        return tuple(
            total + xla.round_for_fma(weight * statistic(sign * unit).astype(total.dtype))
            for total, unit in zip(
                totals, inside.perturbation.units(inside.draw_of(member)), strict=True
            )
        )

    zeros = _zeros(xla.zeros_after, population.params, terms.trips, devices)
    return devices.sum(xla.loop(0, terms.trips, add, zeros))
