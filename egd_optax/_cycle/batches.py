"""Mutate and evaluate: some members at a time, on each device."""

from collections.abc import Callable
import math
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle import auxiliary
from egd_optax._cycle.auxiliary import Evaluated, Seen
from egd_optax._cycle.draws import Drawn
from egd_optax._cycle.elites import Elites
from egd_optax._cycle.fitness import Fitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.place import Alone, Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.unformed import Unformed

T = TypeVar("T")
# Inserts a member with its fitness and its leaves into what is kept.
Keep = Callable[[Elites | None, jax.Array, jax.Array, Leaves], Elites | None]


def in_batches(
    members: Members,
    fitness: Fitness,
    place: Place,
    keep: Keep,
    kept: Elites | None,
    seen: Seen | None,
    *,
    batch_size: int,
) -> tuple[Elites | None, jax.Array, Seen | None]:
    """Scores the members, but for a parent that stands beside pairs.

    Where devices do not divide the members, the last ones repeat one for nothing: no repeated
    evaluation counts.

    Returns:
        What is kept of them, their fitness, and what was seen with them and before.
    """
    pair = members.pair
    first = int(members.antithetic)  # the parent stands beside pairs, else it is one of them
    draws = (members.size - first) // pair
    share = math.ceil(draws / place.devices)
    evaluate = jax.vmap if batch_size > 1 else _mapped
    last = first + pair * (draws - 1)

    def batch(
        carry: tuple[Elites | None, Seen | None], firsts: jax.Array
    ) -> tuple[tuple[Elites | None, Seen | None], jax.Array]:
        kept, seen = carry
        counts = jnp.broadcast_to((firsts <= last)[:, None], (firsts.size, pair)).reshape(-1)
        inside, firsts = members.kept_inside(jnp.minimum(firsts, last))
        numbers = (firsts[:, None] + jnp.arange(pair, dtype=jnp.int32)).reshape(-1)
        carriers = inside.carry_many(firsts, alone=isinstance(place, Alone))

        def one(carrier: Drawn | Leaves, counts: jax.Array) -> Evaluated:
            return fitness(inside.formed(carrier), counts)

        found = evaluate(one)(carriers, counts)
        scores = found.value
        seen = auxiliary.after(seen, found, numbers, counts, members.size)
        if kept is None:
            return (kept, seen), scores

        def insert(at: jax.Array, kept: Elites | None) -> Elites | None:
            carrier = jax.tree.map(lambda leaf: leaf[at], carriers)
            return keep(kept, numbers[at], scores[at], inside.formed(carrier))

        return (lax.fori_loop(0, numbers.size, insert, kept), seen), scores

    def lane(index: jax.Array) -> tuple[Elites | None, tuple[jax.Array, Seen | None]]:
        own = index * share + jnp.arange(share, dtype=jnp.int32)
        start = kept, place.beside_members(auxiliary.nothing_like(seen))
        (of_lane, own_seen), scores = _scan_in_batches(
            batch, start, first + pair * own, max(1, batch_size // pair)
        )
        return of_lane, (scores, own_seen)

    kept, (scores, lanes) = place.each(lane)
    return kept, scores.reshape(-1)[: draws * pair], auxiliary.after_lanes(seen, lanes)


def unformed_in_batches(
    members: Members, place: Place, unformed: Unformed, seen: Seen | None, *, batch_size: int
) -> tuple[jax.Array, Seen | None]:
    """The fitness of the members but the parent, in equal batches, the last one filled up.

    What fills up repeats a member, and does not count.

    Returns:
        Their fitness, and what was seen with them and before.
    """
    pair = members.pair
    draws = (members.size - 1) // pair
    share = math.ceil(draws / place.devices)
    size = _size_of_equal_batches(share, max(1, batch_size // pair))
    batches = math.ceil(share / size)
    last = 1 + pair * (draws - 1)

    def batch(seen: Seen | None, at: jax.Array) -> tuple[Seen | None, jax.Array]:
        firsts = 1 + pair * at
        counts = jnp.repeat((at < draws), pair)
        carriers = members.carry_many(jnp.minimum(firsts, last), alone=isinstance(place, Alone))
        evaluate = jax.vmap if batch_size > 1 else _mapped
        found = evaluate(unformed.evaluate)(carriers, counts)
        # Which ones they are is not asked, for none is the parent or the child.
        numbers = jnp.ones_like(counts, jnp.int32)
        return auxiliary.after(seen, found, numbers, counts, members.size), found.value

    def lane(index: jax.Array) -> tuple[None, tuple[jax.Array, Seen | None]]:
        own = jnp.arange(batches * size, dtype=jnp.int32).reshape(batches, size)
        # A device has no part in the share of the next one.
        own = jnp.where(own < share, index * share + own, draws)
        start = place.beside_members(auxiliary.nothing_like(seen))
        own_seen, scores = lax.scan(batch, start, own)
        return None, (scores.reshape(-1)[: share * pair], own_seen)

    _, (scores, lanes) = place.each(lane)
    return scores.reshape(-1)[: draws * pair], auxiliary.after_lanes(seen, lanes)


def _size_of_equal_batches(count: int, most: int) -> int:
    """At most so many, and more than half of that, so that as few as can be fill up."""
    most = min(most, count)
    return min(range(most // 2 + 1, most + 1), key=lambda size: (-(-count // size) * size, -size))


def _mapped(fn: Callable[..., Evaluated]) -> Callable[..., Evaluated]:
    """`jax.vmap`, one after another."""
    return lambda *args: lax.map(lambda each: fn(*each), args)


def _scan_in_batches(
    fn: Callable[[T, jax.Array], tuple[T, jax.Array]], carry: T, xs: jax.Array, size: int
) -> tuple[T, jax.Array]:
    """`lax.scan` over `size` entries of `xs`, `[n]`, at a time; the last batch has what is left.

    `fn` maps the carry and some entries to the carry and their results, a vector. Returns the
    carry, and the results of all entries in one vector. What is left is one more program.
    """
    size = min(size, xs.size)
    whole = xs.size // size * size
    carry, results = lax.scan(fn, carry, xs[:whole].reshape(-1, size))
    results = results.reshape(-1)
    if whole < xs.size:
        carry, rest = fn(carry, xs[whole:])
        results = jnp.concatenate([results, rest])
    return carry, results
