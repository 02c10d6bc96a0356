"""Recombine: the sum of weight * (member - parent), of kept elites or of members drawn again."""

import math

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle import xla
from egd_optax._cycle.elites import Elites
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.parts import sum_dtype
from egd_optax._cycle.place import Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.storage import Storage

# Draws that are held and added to the sum at a time, where they are cheap to hold: the sum is
# read and written once for all of them.
_AT_ONCE = 8


def child_of(
    members: Members,
    weights: jax.Array,
    fitness: jax.Array,
    place: Place,
    *,
    elites: Elites | None,
    storage: Storage,
    elite_count: int | None,
) -> Leaves:
    """The parent plus the sum of weight * (member - parent).

    With weights that sum to one it is the weighted mean of the members, more exact than the plain
    sum because only the differences are rounded.

    Args:
        members: the members.
        weights: `[size]`, zero for a member that is not finite.
        fitness: `[size]`.
        place: how devices share the work.
        elites: the members that are kept, or None: those that weigh are drawn again.
        storage: where these are.
        elite_count: how many members can weigh something; None for all.

    Returns:
        The mutating leaves of the child. Costs a read, or with `memory="replay"` a draw, of every
        elite but the parent; else a draw of every member, or pair, that can weigh something.
    """

    def sum_of(genome: Genome, total: Leaves) -> Leaves:
        inside = members.around(genome)
        if elites is None:
            return _sum_of_draws(inside, weights, place, elite_count, total)
        return _sum_of_elites(inside, weights, place, elites, storage, total)

    zeros = _zeros(place.share(members.genome.leaves()), fitness)
    return place.land(sum_of, zeros, members.genome, fitness)


def _zeros(genome: Leaves, fitness: jax.Array) -> Leaves:
    """Zero accumulator, allocated only after scoring.

    Otherwise it is live beside the active member.
    """
    zero = xla.impossible(fitness)

    def zeros(leaf: jax.Array) -> jax.Array:
        dtype = sum_dtype(leaf.dtype)
        return jnp.zeros_like(leaf, dtype) + zero.astype(dtype)

    return tuple(map(zeros, genome))


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
    mine = jnp.zeros(weight.shape, jnp.bool_).at[place.mine(weight.size)].set(True, mode="drop")
    on = mine & (elites.member > 0) & (weight != 0)

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

    mine = place.mine(count)
    at_once = min(_AT_ONCE, mine.size) if members.noise.redraw else 1
    chunks = math.ceil(mine.size / at_once)
    at_once = math.ceil(mine.size / chunks)  # as equal as can be: few are filled up in vain
    mine = jnp.pad(mine, (0, chunks * at_once - mine.size), constant_values=count)
    firsts = firsts.at[mine].get(mode="clip").reshape(chunks, at_once)
    weight_of = weight_of.at[mine].get(mode="fill", fill_value=0).reshape(chunks, at_once)

    def add(total: Leaves, firsts: jax.Array, weights: jax.Array) -> Leaves:
        return tuple(map(jnp.add, total, members.weighted_sum(firsts, weights)))

    def add_chunk(total: Leaves, chunk: tuple[jax.Array, jax.Array]) -> tuple[Leaves, None]:
        return xla.at_most_once(jnp.any(chunk[1] != 0), add, total, *chunk), None

    total, _ = lax.scan(add_chunk, total, (firsts, weight_of))
    return total
