"""Recombine: the sum of weight * (member - parent), of kept elites or of members drawn again."""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle import xla
from egd_optax._cycle.elites import Elites
from egd_optax._cycle.members import Members, displaced
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.parts import sum_dtype
from egd_optax._cycle.place import Land, Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.storage import Storage


def child_of(members: Members, *args: Any, **kwargs: Any) -> Leaves:
    """The parent plus the sum of weight * (member - parent), the mutating leaves of the child.

    With weights that sum to one it is the weighted mean of the members, more exact than the plain
    sum because only the differences are rounded. Takes the arguments of `total_of`.
    """
    child = total_of(members, *args, add=displaced, **kwargs)
    pairs = zip(child, members.genome.params, strict=True)
    return members.genome.reached(tuple(leaf.astype(like.dtype) for leaf, like in pairs))


def _sum_alone(genome: Leaves, total: Leaves) -> Leaves:
    del genome
    return total


def total_of(
    members: Members,
    weights: jax.Array,
    fitness: jax.Array,
    place: Place,
    *,
    elites: Elites | None,
    storage: Storage,
    elite_count: int | None,
    buffer: Leaves | None,
    add: Land = _sum_alone,
) -> Leaves:
    """The sum of weight * (member - parent), in float32 or wider.

    Args:
        members: the members.
        weights: `[size]`, zero for a member that is not finite.
        fitness: `[size]`.
        place: how devices share the work.
        elites: the members that are kept, or None: those that weigh are drawn again.
        storage: where these are.
        elite_count: how many members can weigh something; None for all.
        buffer: a member in whose memory to sum, if there is one.
        add: what to do with the mutating leaves of the parent and the sum.

    Returns:
        Entries like those of the genome. Costs a read, or with `memory="replay"` a draw, of every
        elite but the parent; else a draw of every member, or pair, that can weigh something.
    """

    def sum_of(genome: Genome, total: Leaves) -> Leaves:
        inside = members.around(genome)
        if elites is None:
            return _sum_of_draws(inside, weights, place, elite_count, total)
        return _sum_of_elites(inside, weights, place, elites, storage, total)

    genome = members.genome.leaves()
    zeros = _zeros(place.share(genome), fitness, None if buffer is None else place.share(buffer))
    return place.land(sum_of, zeros, members.genome, fitness, add)


def _zeros(genome: Leaves, fitness: jax.Array, buffer: Leaves | None) -> Leaves:
    """Zero accumulator, made only after scoring, in the memory of a member where it fits.

    Otherwise it is live beside the active member.
    """
    never = xla.impossible(fitness)

    def zeros(at: int) -> jax.Array:
        dtype = sum_dtype(genome[at].dtype)
        if buffer is not None and buffer[at].dtype == dtype:
            return jnp.where(never, buffer[at], jnp.zeros_like(buffer[at]))
        return jnp.zeros_like(genome[at], dtype) + never.astype(dtype)

    return tuple(map(zeros, range(len(genome))))


def _sum_of_elites(
    members: Members,
    weights: jax.Array,
    place: Place,
    elites: Elites,
    storage: Storage,
    total: Leaves,
) -> Leaves:
    """Adds the elites that this device is to add, in the order of their slots."""
    weight = weights[elites.member]
    on = (elites.member > 0) & (weight != 0) & place.mine(weight.size)

    def add(slot: jax.Array, at: int, leaf: jax.Array, total: jax.Array) -> jax.Array:
        # The total differs from trip to trip in every memory mode, also where k is one.
        inside, total = members.kept_inside(total)
        parent = inside.genome.leaves()[at]
        deviation = leaf.astype(total.dtype) - parent.astype(total.dtype)
        return total + xla.rounded_to_add(weight[slot] * deviation)

    return storage.fold(elites, members, on, add, total)


def _sum_of_draws(
    members: Members,
    weights: jax.Array,
    place: Place,
    elite_count: int | None,
    total: Leaves,
) -> Leaves:
    """Adds the members that this device is to add, drawn again; a pair is one draw."""
    firsts = jnp.arange(1, members.size, members.pair, dtype=jnp.int32)
    signs = jnp.array((1, -1)[: members.pair], weights.dtype)
    weight_of = weights[1:].reshape(-1, members.pair) @ signs
    count = firsts.size if elite_count is None else min(firsts.size, elite_count)
    if count < firsts.size:  # those that weigh something, in their order: `top_k` is stable
        _, at = lax.top_k((weight_of != 0).astype(jnp.int32), count)
        firsts, weight_of = firsts[at], weight_of[at]

    # What fills up is a member again, of no weight.
    firsts, weight_of = place.own(firsts, fill=1), place.own(weight_of)
    at_once = min(members.drawn_at_once, firsts.size)
    chunks = math.ceil(firsts.size / at_once)
    at_once = math.ceil(firsts.size / chunks)  # as equal as can be: few are filled up in vain
    more = (0, chunks * at_once - firsts.size)
    firsts = jnp.pad(firsts, more, constant_values=1).reshape(chunks, at_once)
    weight_of = jnp.pad(weight_of, more).reshape(chunks, at_once)

    def add(total: Leaves, firsts: jax.Array, weights: jax.Array) -> Leaves:
        return tuple(map(jnp.add, total, members.weighted_sum(firsts, weights)))

    def add_chunk(total: Leaves, chunk: tuple[jax.Array, jax.Array]) -> tuple[Leaves, None]:
        return xla.at_most_once(jnp.any(chunk[1] != 0), add, total, *chunk), None

    total, _ = lax.scan(add_chunk, total, (firsts, weight_of))
    return total
