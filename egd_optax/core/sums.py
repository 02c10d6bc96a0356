"""Recombine: the sums of weight * (member - parent), and of a statistic of their noise."""

from collections.abc import Callable, Container, Sequence
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, packing, xla
from egd_optax.backend.devices import Devices
from egd_optax.backend.memory import Memory
from egd_optax.backend.packing import Arrays
from egd_optax.core.pending import Pending, made, settled, together_or_alone, zeros_like
from egd_optax.core.population import Candidate, Population
from egd_optax.core.rows import sums_of_rows
from egd_optax.core.terms import Terms, first_those_that_weigh

T = TypeVar("T")


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
    sums = whole | sums_of_rows(population, terms, wide, devices)
    found: dict[int, T] = {}
    before = None
    for at, pending in sums.items():
        if at in wide and before is not None:
            of, found[before] = xla.fetch_after(pending.of, found[before])
            pending = pending._replace(of=of)
        found[at] = settled(pending, params[at], functools.partial(then, at), devices)
        before = at if at in wide else before
    return [found[at] for at in range(len(params))]


def _has_wide_sum(leaf: jax.Array) -> bool:
    return leaf.size > packing.LARGEST and arithmetic.sum_dtype(leaf.dtype) != leaf.dtype


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
    zeros = zeros_like(xla.zeros_in, held.whole, terms.trips, devices)
    return made(memory.fold(pages, weights != 0, add, zeros), blocks)


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

        zeros = zeros_like(xla.zeros_in, [buffers[at] for at in blocks], terms.trips, devices)
        return xla.loop(0, terms.trips, add, zeros)

    def one(at: int) -> Pending:
        return Pending(terms, lambda terms: sums((at,), terms)[0])

    return together_or_alone(functools.partial(sums, terms=terms), one, buffers, alone)


def _plus(
    population: Population, at: int, total: jax.Array, weight: jax.Array, leaf: jax.Array
) -> jax.Array:
    """The total plus weight * (member - parent) in one block."""
    deviation = leaf.astype(total.dtype) - population.parent_block(at).astype(total.dtype)
    return total + xla.round_for_fma(weight.astype(total.dtype) * deviation)


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

    zeros = zeros_like(xla.zeros_after, population.params, terms.trips, devices)
    return devices.sum(xla.loop(0, terms.trips, add, zeros))
