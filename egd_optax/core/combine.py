"""Recombine: the sum of weight * (member - parent), and the child that it leads to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, packing, xla
from egd_optax.backend.devices import Devices, alike
from egd_optax.backend.memory import Memory
from egd_optax.backend.packing import Arrays
from egd_optax.core.population import Candidate, Population
from egd_optax.core.select import Slots, slots_of

# Draws whose rows are held and summed at a time: so many, in this part of the memory of the leaves.
_AT_ONCE = 64
_SHARE = 4


class Terms(NamedTuple):
    """The terms that a device adds up, those with a weight first; `[n]` each.

    Attributes:
        slots: the slot of a member, if it is kept.
        members: its number.
        weights: its weight.
        trips: how many have a weight, on the device with the most of these, int32 `[]`.
    """

    slots: jax.Array
    members: jax.Array
    weights: jax.Array
    trips: jax.Array


def terms_of(
    weights: jax.Array,
    fitness: jax.Array,
    support: int | None,
    slots: Slots | None,
    *,
    pair: int,
    devices: Devices,
) -> Terms:
    """The terms that each device adds up, from the weights of all members, `[n]`.

    Members that are kept are added one by one. If any member can get a weight, the two of a pair
    are one term, for they share a draw.
    """
    if support is None:
        members = jnp.arange(1, weights.size, pair, dtype=jnp.int32)
        signs = jnp.array((1, -1)[:pair], weights.dtype)
        own = weights[1:].reshape(-1, pair) @ signs
    else:
        members = (slots_of(fitness, support) if slots is None else slots).member
        own = jnp.where(members > 0, weights[members], 0)
    return _first_those_that_weigh(members, own, devices)


def _first_those_that_weigh(members: jax.Array, weights: jax.Array, devices: Devices) -> Terms:
    slots = devices.rank() + devices.size * jnp.arange(devices.share(weights.size))
    weights = weights.at[slots].get(mode="fill", fill_value=0)
    members = members.at[slots].get(mode="fill", fill_value=1)
    order = jnp.argsort(weights == 0, stable=True)
    # As many trips on each device: XLA may communicate in them, along other axes.
    count = devices.most(jnp.sum(weights != 0).astype(jnp.int32))
    return Terms(slots[order], members[order], weights[order], count)


def weighted_sum(
    population: Population,
    terms: Terms,
    held: Candidate,
    *,
    memory: Memory,
    pages: Any,
    devices: Devices,
) -> list[jax.Array]:
    """The sum of weight * (member - parent) in each block, the same on all devices.

    Args:
        population: the members.
        terms: the terms that this device adds.
        held: a candidate in whose memory to sum.
        memory: where members are kept.
        pages: their leaves that are kept, None if none are.
        devices: share the terms.

    Returns:
        Blocks in the dtype of a sum. Costs a read or a draw for each term.
    """
    layout = population.layout
    whole = _sum_of_whole(population, terms, held.whole, memory, pages, devices)
    rows = _sum_of_rows(population, terms, devices)
    sums = layout.in_order(whole, rows)
    # Else each device might hold whole sums, and send them.
    sums = [alike(total, leaf) for total, leaf in zip(sums, population.params, strict=True)]
    return devices.sum(sums)


def _sum_of_whole(
    population: Population,
    terms: Terms,
    buffers: Arrays,
    memory: Memory,
    pages: Any,
    devices: Devices,
) -> Arrays:
    """The sums in the blocks whose leaves are held."""
    if not buffers:
        return ()

    def add(totals: Arrays, weight: jax.Array, leaves: Arrays) -> Arrays:
        # The parent is a sum, which XLA would compute before the loop and hold.
        inside, totals = xla.no_hoist(population, totals)
        added: list[jax.Array] = []
        for at, total, leaf in zip(inside.layout.whole, totals, leaves, strict=True):
            if added and pages is not None:
                leaf, added[-1] = memory.fetch(leaf, added[-1])
            elif pages is not None:
                leaf, total = memory.fetch(leaf, total)
            parent = inside.parent_block(at).astype(total.dtype)
            deviation = leaf.astype(total.dtype) - parent
            added.append(total + xla.round_for_fma(weight.astype(total.dtype) * deviation))
        return tuple(added)

    def add_drawn(index: jax.Array, totals: Arrays) -> Arrays:
        inside, index = xla.no_hoist(population, index)
        member = terms.members[index]
        leaves = inside.draw_whole(inside.draw_of(member))
        if inside.mirrors:
            mirrored = inside.is_mirrored(member)
            other = inside.mirrored_whole(leaves, inside.draw_of(member))
            leaves = tuple(jnp.where(mirrored, b, a) for a, b in zip(leaves, other, strict=True))
        leaves = inside.learned(leaves, member, ~xla.opaque_false(member))
        return add(totals, terms.weights[index], leaves)

    zeros = devices.varying(
        tuple(xla.zeros_in(leaf, terms.trips, arithmetic.sum_dtype(leaf.dtype)) for leaf in buffers)
    )
    if pages is not None:
        weights = jnp.zeros_like(terms.weights).at[terms.slots].set(terms.weights)
        return memory.fold(
            pages,
            weights != 0,
            lambda totals, slot, leaves: add(totals, weights[slot], leaves),
            zeros,
        )
    return xla.loop(0, terms.trips, add_drawn, zeros)


def _sum_of_rows(population: Population, terms: Terms, devices: Devices) -> Arrays:
    """The sums in the blocks in rows; few draws at a time, to take less memory than the leaves."""
    layout = population.layout
    if not layout.in_rows:
        return ()
    entries = sum(leaf.size for leaf in population.params)
    total = terms.weights.size
    size = min(total, _AT_ONCE, max(1, entries // (_SHARE * packing.LENGTH * layout.row_count)))
    chunks = -(-total // size)
    size = -(-total // chunks)
    signs = population.sign_of(terms.members).astype(terms.weights.dtype)
    more = (0, chunks * size - total)
    members = jnp.pad(terms.members, more, constant_values=1)
    weights = jnp.pad(signs * terms.weights, more)

    def sums(chunk: jax.Array) -> Arrays:
        own = lax.dynamic_slice_in_dim(weights, chunk * size, size)

        def put(index: jax.Array, rows: jax.Array) -> jax.Array:
            drawn = population.rows_of(members[chunk * size + index])
            return rows.at[index].set(drawn)

        blank = devices.varying(jnp.zeros((size, layout.row_count, packing.LENGTH), jnp.float32))
        many = jnp.clip(terms.trips - chunk * size, 0, size)
        rows = xla.loop(0, many, put, blank)
        return tuple(population.perturbation.weighted_sum(at, rows, own) for at in layout.in_rows)

    if chunks == 1:  # without zeros to add to, which would be a copy
        return sums(jnp.int32(0))
    params = (population.params[at] for at in layout.in_rows)
    zeros = devices.varying(
        tuple(
            xla.zeros_after(leaf, terms.trips, arithmetic.sum_dtype(leaf.dtype)) for leaf in params
        )
    )

    def add(chunk: jax.Array, totals: Arrays) -> Arrays:
        return tuple(map(jnp.add, totals, sums(chunk)))

    return xla.loop(0, -(-terms.trips // size), add, zeros)


def child_of(population: Population, held: Candidate, steps: list[jax.Array]) -> Candidate:
    """The child: parent + step in each block, in the memory of a candidate."""
    layout = population.layout
    updates = [population.stepped(at, step) for at, step in enumerate(steps)]
    whole = tuple(population.reach(at, updates[at]) for at in layout.whole)
    return Candidate(held.rows, whole, tuple(updates[at] for at in population.centered))


def statistic_of(
    statistic: Callable[[jax.Array], jax.Array],
    population: Population,
    weights: jax.Array,
    devices: Devices,
) -> list[jax.Array]:
    """The sum of weight * `statistic(noise)` over the members, in each block.

    Costs a draw for each member with a weight.
    """
    members = jnp.arange(1, weights.size, dtype=jnp.int32)
    terms = _first_those_that_weigh(members, weights[1:], devices)
    zeros = [
        xla.zeros_after(leaf, terms.trips, arithmetic.sum_dtype(leaf.dtype))
        for leaf in population.params
    ]

    def add(index: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
        inside, index = xla.no_hoist(population, index)
        member = terms.members[index]
        sign, weight = inside.sign_of(member), terms.weights[index]
        return [
            total + xla.round_for_fma(weight * statistic(sign * unit).astype(total.dtype))
            for total, unit in zip(
                totals, inside.perturbation.units(inside.draw_of(member)), strict=True
            )
        ]

    return devices.sum(xla.loop(0, terms.trips, add, devices.varying(zeros)))
