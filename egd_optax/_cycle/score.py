"""Mutate and evaluate: every member is drawn, scored and forgotten, but for those that are kept."""

from collections.abc import Callable
import functools
import math
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle.elites import Elites
from egd_optax._cycle.fitness import Fitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.place import Alone, Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.storage import Storage

T = TypeVar("T")
# Inserts a member with its fitness and its leaves into what is kept.
Keep = Callable[[T, jax.Array, jax.Array, Leaves], T]


def score(
    members: Members, fitness: Fitness, place: Place, storage: Storage, *, batch_size: int
) -> tuple[Elites | None, jax.Array]:
    """Draws and evaluates every member of a generation.

    Args:
        members: the members.
        fitness: the fitness of a member.
        place: how devices share the members.
        storage: where elites are kept.
        batch_size: members to evaluate at a time on a device, under `jax.vmap`.

    Returns:
        The elites, None if nothing is stored of them, and the fitness of all members, `[size]`,
        the same on all devices. Costs `size` forward passes and a draw for every member but the
        parent, or for every pair of antithetic ones; and device memory for `batch_size` members.
    """
    kept = storage.start(members.genome.leaves())

    def keep(
        kept: Elites | None, member: jax.Array, value: jax.Array, leaves: Leaves
    ) -> Elites | None:
        return None if kept is None else storage.insert(kept, member, value, leaves)

    if batch_size == 1 and isinstance(place, Alone):
        return _one_by_one(members, fitness, keep, kept)
    return _in_batches(members, fitness, place, keep, kept, batch_size=batch_size)


def _one_by_one(members: Members, fitness: Fitness, keep: Keep[T], kept: T) -> tuple[T, jax.Array]:
    """One member after another, in the memory of one."""
    # Where only parts of the noise are carried, XLA forms each leaf of a member where it is used,
    # and holds no more than that, and the parent: where a leaf is formed within a matrix
    # product, to add parameters and updates up there takes longer.
    held = members.around(Genome(members.genome.leaves())) if members.noise.redraw else members

    def one(carry: tuple[T, object], member: jax.Array) -> tuple[tuple[T, object], jax.Array]:
        kept, carrier = carry
        carrier = members.carry_next(member, carrier)
        leaves = held.leaves(carrier)
        value = fitness(leaves)
        return (keep(kept, member, value, leaves), carrier), value

    start = (kept, members.carry_parent())
    (kept, _), scores = lax.scan(one, start, jnp.arange(members.size, dtype=jnp.int32))
    return kept, scores


def _in_batches(
    members: Members,
    fitness: Fitness,
    place: Place,
    keep: Keep[T],
    kept: T,
    *,
    batch_size: int,
) -> tuple[T, jax.Array]:
    """Some members at a time, in the memory of as many, on each device.

    Where devices do not divide the members, the last ones repeat some for nothing.
    """
    pair = members.pair
    first = int(members.antithetic)  # the parent stands beside pairs, else it is one of them
    draws = (members.size - first) // pair
    share = math.ceil(draws / place.devices)
    evaluate = jax.vmap if batch_size > 1 else lambda fn: functools.partial(lax.map, fn)

    def batch(kept: T, firsts: jax.Array) -> tuple[T, jax.Array]:
        inside, firsts = members.kept_inside(firsts)
        numbers = (firsts[:, None] + jnp.arange(pair, dtype=jnp.int32)).reshape(-1)
        carriers = inside.carry_many(firsts, alone=isinstance(place, Alone))
        scores = evaluate(lambda carrier: fitness(inside.leaves(carrier)))(carriers)
        if kept is None:
            return kept, scores

        def insert(at: jax.Array, kept: T) -> T:
            carrier = jax.tree.map(lambda leaf: leaf[at], carriers)
            return keep(kept, numbers[at], scores[at], inside.leaves(carrier))

        return lax.fori_loop(0, numbers.size, insert, kept), scores

    def lane(index: jax.Array) -> tuple[T, jax.Array]:
        own = jnp.minimum(index * share + jnp.arange(share, dtype=jnp.int32), draws - 1)
        return _scan_in_batches(batch, kept, first + pair * own, max(1, batch_size // pair))

    of_parent = None
    if members.antithetic:
        parent = members.genome.leaves()
        of_parent = fitness(parent)
        kept = keep(kept, jnp.int32(0), of_parent, parent)
    kept, scores = place.each(lane)
    scores = scores[: draws * pair]
    return kept, scores if of_parent is None else jnp.append(of_parent, scores)


def _scan_in_batches(
    fn: Callable[[T, jax.Array], tuple[T, jax.Array]], carry: T, xs: jax.Array, size: int
) -> tuple[T, jax.Array]:
    """`lax.scan` over `size` entries of `xs`, `[n]`, at a time; the last batch has what is left.

    `fn` maps the carry and some entries to the carry and their results, a vector. Returns the
    carry, and the results of all entries in one vector.
    """
    size = min(size, xs.size)
    whole = xs.size // size * size
    carry, results = lax.scan(fn, carry, xs[:whole].reshape(-1, size))
    results = results.reshape(-1)
    if whole < xs.size:
        carry, rest = fn(carry, xs[whole:])
        results = jnp.concatenate([results, rest])
    return carry, results
