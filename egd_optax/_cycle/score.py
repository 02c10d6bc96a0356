"""Mutate and evaluate: every member is drawn, scored and forgotten, and then their child."""

from collections.abc import Callable
import math
from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle import xla
from egd_optax._cycle.draws import Drawn
from egd_optax._cycle.elites import Elites
from egd_optax._cycle.fitness import Fitness, fitness_dtype
from egd_optax._cycle.members import Carrier, Members
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.place import Alone, Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.storage import Storage
from egd_optax._cycle.unformed import Unformed

T = TypeVar("T")
# Makes the child of the members, from what is kept of them and the fitness of all, `[size]`, in the
# memory of a member that there is no more need of, if there is one.
ChildOf = Callable[[Members, Elites | None, jax.Array, Leaves | None], Leaves]
# Inserts a member with its fitness and its leaves into what is kept.
Keep = Callable[[Elites | None, jax.Array, jax.Array, Leaves], Elites | None]
# What is kept, the fitness of the members, and the leaves that are evaluated next.
_Carry = tuple[Elites | None, jax.Array, Leaves]


class Scored(NamedTuple):
    """All that a generation evaluates.

    Attributes:
        kept: the elites, None if nothing is stored of them.
        members: the fitness of all members, `[size]`, the same on all devices.
        child: the child.
        of_child: its fitness, `[]`.
        of_best: that of the best member as the parameters that it would become, `[]`; None
            where that is its score.
    """

    kept: Elites | None
    members: jax.Array
    child: Leaves
    of_child: jax.Array
    of_best: jax.Array | None = None


def score(
    members: Members,
    fitness: Fitness,
    place: Place,
    storage: Storage,
    child_of: ChildOf,
    *,
    batch_size: int,
    unformed: Unformed | None = None,
    judges_best: bool = False,
) -> Scored:
    """Draws and evaluates every member of a generation, and the child that comes of them.

    Args:
        members: the members.
        fitness: the fitness of a member.
        place: how devices share the members.
        storage: where elites are kept.
        child_of: makes the child.
        batch_size: members to evaluate at a time on a device, under `jax.vmap`.
        unformed: how members are evaluated that are not formed, None where they are.
        judges_best: whether the best of those is to be evaluated once more, formed.

    Returns:
        What was found. Costs `size + 1` forward passes, one more where the best is judged, and a
        draw for every member but the parent, or for every pair of antithetic ones; and device
        memory for `batch_size` members, or the activations of as many that are not formed.
        The program holds `fitness` once, and once more under `jax.vmap` if that is asked for.
    """
    kept = storage.start(members.genome.leaves())

    def keep(
        kept: Elites | None, member: jax.Array, value: jax.Array, leaves: Leaves
    ) -> Elites | None:
        return None if kept is None else storage.insert(kept, member, value, leaves)

    if unformed is not None:
        unformed = unformed._replace(bases=place.beside_members(unformed.bases))
        return _unformed(
            members, fitness, place, child_of, unformed, judges_best, batch_size=batch_size
        )
    if batch_size == 1 and isinstance(place, Alone):
        return _one_by_one(members, fitness, keep, kept, child_of)
    return _in_batches(members, fitness, place, keep, kept, child_of, batch_size=batch_size)


def _one_by_one(
    members: Members, fitness: Fitness, keep: Keep, kept: Elites | None, child_of: ChildOf
) -> Scored:
    """One member after another and the child last, in the memory of one: one program for all."""

    def child(carrier: Carrier, genome: Genome, kept: Elites | None, scores: jax.Array) -> Carrier:
        inside = members.around(genome)
        buffer = members.carried(carrier)
        return inside.carry_child(child_of(inside, kept, scores[:-1], buffer), carrier)

    def one(
        index: jax.Array, carry: tuple[Elites | None, jax.Array, Carrier]
    ) -> tuple[Elites | None, jax.Array, Carrier]:
        kept, scores, carrier = carry
        last = index == members.size
        carrier = members.carry_next(index, carrier)
        carrier = xla.at_most_once(last, child, carrier, members.genome, kept, scores)
        leaves = members.leaves(carrier)
        value = fitness(leaves)
        # The child takes no place among the members.
        kept = keep(kept, index, jnp.where(last, jnp.inf, value), leaves)
        return kept, lax.dynamic_update_index_in_dim(scores, value, index, 0), carrier

    unknown = jnp.full([members.size + 1], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.carry_parent())
    trips = jnp.int32(0), jnp.int32(members.size + 1)
    kept, scores, carrier = lax.fori_loop(*trips, one, start)
    return Scored(kept, scores[:-1], members.carried(carrier), scores[-1])


def _in_batches(
    members: Members,
    fitness: Fitness,
    place: Place,
    keep: Keep,
    kept: Elites | None,
    child_of: ChildOf,
    *,
    batch_size: int,
) -> Scored:
    """Some members at a time, in the memory of as many, on each device; then the child."""
    one_by_one = place.on_each(fitness)
    if not members.antithetic:  # the parent is one of the members
        kept, scores = _batches(members, fitness, place, keep, kept, batch_size=batch_size)
        child = child_of(members, kept, scores, None)
        return Scored(kept, scores, child, one_by_one(child))

    def rest(carry: _Carry, genome: Genome) -> _Carry:
        inside = members.around(genome)
        kept, scores, _ = carry
        kept, found = _batches(inside, fitness, place, keep, kept, batch_size=batch_size)
        scores = jnp.append(scores[0], found)
        return kept, scores, child_of(inside, kept, scores, None)

    def one(carry: _Carry, last: jax.Array) -> tuple[_Carry, jax.Array]:
        kept, scores, leaves = xla.at_most_once(last, rest, carry, members.genome)
        value = one_by_one(leaves)
        kept = keep(kept, jnp.int32(0), jnp.where(last, jnp.inf, value), leaves)
        return (kept, jnp.where(last, scores, scores.at[0].set(value)), leaves), value

    # The parent, which stands beside the pairs, and then all others: one program for two.
    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.genome.leaves())
    (kept, scores, child), values = lax.scan(one, start, jnp.array([False, True]))
    return Scored(kept, scores, child, values[-1])


def _unformed(
    members: Members,
    fitness: Fitness,
    place: Place,
    child_of: ChildOf,
    unformed: Unformed,
    judges_best: bool,
    *,
    batch_size: int,
) -> Scored:
    """The parent; all others at most so many at a time; then the child, and the best one formed.

    What may become the parameters is evaluated as these: parent, child and the best member have
    one program, whose rounding is the same, and a member that bfloat16 would round is judged
    rounded.
    """
    one_by_one = place.on_each(fitness)

    def rest(carry: tuple[jax.Array, Leaves], genome: Genome) -> tuple[jax.Array, Leaves]:
        inside = members.around(genome)
        scores, _ = carry
        found = _unformed_batches(inside, place, unformed, batch_size=batch_size)
        scores = jnp.append(scores[0], found)
        return scores, child_of(inside, None, scores, None)

    def one(
        carry: tuple[jax.Array, Leaves], trip: jax.Array
    ) -> tuple[tuple[jax.Array, Leaves], jax.Array]:
        scores, leaves = xla.at_most_once(trip == 1, rest, carry, members.genome)
        evaluated = leaves
        if judges_best:
            best = jnp.argmin(scores).astype(jnp.int32)
            evaluated = members.redrawn(best, (trip == 2) & (best > 0), leaves)
        value = one_by_one(evaluated)
        return (jnp.where(trip == 0, scores.at[0].set(value), scores), leaves), value

    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start = (unknown, members.genome.leaves())
    trips = jnp.arange(2 + judges_best, dtype=jnp.int32)
    (scores, child), values = lax.scan(one, start, trips)
    of_best = jnp.where(jnp.argmin(scores) > 0, values[-1], values[0]) if judges_best else None
    return Scored(None, scores, child, values[1], of_best)


def _unformed_batches(
    members: Members, place: Place, unformed: Unformed, *, batch_size: int
) -> jax.Array:
    """The fitness of the members but the parent, in equal batches, the last one filled up.

    What fills up repeats a member, and does not count.
    """
    pair = members.pair
    draws = (members.size - 1) // pair
    share = math.ceil(draws / place.devices)
    size = _size_of_equal_batches(share, max(1, batch_size // pair))
    batches = math.ceil(share / size)
    last = 1 + pair * (draws - 1)

    def batch(_: None, at: jax.Array) -> tuple[None, jax.Array]:
        firsts = 1 + pair * at
        counts = jnp.repeat((at < draws), pair)
        carriers = members.carry_many(jnp.minimum(firsts, last), alone=isinstance(place, Alone))
        evaluate = jax.vmap if batch_size > 1 else _mapped
        return None, evaluate(unformed.evaluate)(carriers, counts)

    def lane(index: jax.Array) -> tuple[None, jax.Array]:
        own = jnp.arange(batches * size, dtype=jnp.int32).reshape(batches, size)
        # A device has no part in the share of the next one.
        own = jnp.where(own < share, index * share + own, draws)
        _, scores = lax.scan(batch, None, own)
        return None, scores.reshape(-1)[: share * pair]

    _, scores = place.each(lane)
    return scores[: draws * pair]


def _size_of_equal_batches(count: int, most: int) -> int:
    """At most so many, and more than half of that, so that as few as can be fill up."""
    return min(range(most // 2 + 1, most + 1), key=lambda size: (-(-count // size) * size, -size))


def _batches(
    members: Members,
    fitness: Fitness,
    place: Place,
    keep: Keep,
    kept: Elites | None,
    *,
    batch_size: int,
) -> tuple[Elites | None, jax.Array]:
    """Scores the members, but for a parent that stands beside pairs.

    Where devices do not divide the members, the last ones repeat one for nothing: no repeated
    evaluation counts.
    """
    pair = members.pair
    first = int(members.antithetic)  # the parent stands beside pairs, else it is one of them
    draws = (members.size - first) // pair
    share = math.ceil(draws / place.devices)
    evaluate = jax.vmap if batch_size > 1 else _mapped
    last = first + pair * (draws - 1)

    def batch(kept: Elites | None, firsts: jax.Array) -> tuple[Elites | None, jax.Array]:
        counts = jnp.broadcast_to((firsts <= last)[:, None], (firsts.size, pair)).reshape(-1)
        inside, firsts = members.kept_inside(jnp.minimum(firsts, last))
        numbers = (firsts[:, None] + jnp.arange(pair, dtype=jnp.int32)).reshape(-1)
        carriers = inside.carry_many(firsts, alone=isinstance(place, Alone))

        def one(carrier: Drawn | Leaves, counts: jax.Array) -> jax.Array:
            return fitness(inside.formed(carrier), counts)

        scores: jax.Array = evaluate(one)(carriers, counts)
        if kept is None:
            return kept, scores

        def insert(at: jax.Array, kept: Elites | None) -> Elites | None:
            carrier = jax.tree.map(lambda leaf: leaf[at], carriers)
            return keep(kept, numbers[at], scores[at], inside.formed(carrier))

        return lax.fori_loop(0, numbers.size, insert, kept), scores

    def lane(index: jax.Array) -> tuple[Elites | None, jax.Array]:
        own = index * share + jnp.arange(share, dtype=jnp.int32)
        return _scan_in_batches(batch, kept, first + pair * own, max(1, batch_size // pair))

    kept, scores = place.each(lane)
    return kept, scores[: draws * pair]


def _mapped(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
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
