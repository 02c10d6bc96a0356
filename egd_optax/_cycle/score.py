"""Mutate and evaluate: every member is drawn, scored and forgotten, and then their child."""

from collections.abc import Callable
import math
from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

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

# Scores the members but a parent that stands beside them, some at a time.
Batches = Callable[[Members, Elites | None], tuple[Elites | None, jax.Array]]
T = TypeVar("T")
# Makes the child of the members, from what is kept of them and the fitness of all, `[size]`, in the
# memory of a member that there is no more need of, if there is one; and the next state of `step`.
ChildOf = Callable[
    [Members, Elites | None, jax.Array, Leaves | None, optax.OptState],
    tuple[Leaves, optax.OptState],
]
# Inserts a member with its fitness and its leaves into what is kept.
Keep = Callable[[Elites | None, jax.Array, jax.Array, Leaves], Elites | None]
# What is kept, the fitness of the members, the leaves that are evaluated next, the state of `step`.
_Carry = tuple[Elites | None, jax.Array, Leaves, optax.OptState]


class Scored(NamedTuple):
    """All that a generation evaluates.

    Attributes:
        kept: the elites, None if nothing is stored of them.
        members: the fitness of all members, `[size]`, the same on all devices; +inf of a parent
            that was not evaluated.
        child: the child.
        step_state: the state of `step` behind it.
        of_child: its fitness, `[]`, +inf if it was not evaluated.
        of_best: that of the best member as the parameters that it would become, `[]`; None
            where that is its score.
    """

    kept: Elites | None
    members: jax.Array
    child: Leaves
    step_state: optax.OptState
    of_child: jax.Array
    of_best: jax.Array | None = None


def score(
    members: Members,
    fitness: Fitness,
    place: Place,
    storage: Storage,
    child_of: ChildOf,
    step_state: optax.OptState,
    *,
    selects_only: bool,
    batch_size: int,
    unformed: Unformed | None = None,
    judges_best: bool = False,
) -> Scored:
    """Draws and evaluates every member of a generation, and makes the child that comes of them.

    Args:
        members: the members.
        fitness: the fitness of a member.
        place: how devices share the members.
        storage: where elites are kept.
        child_of: makes the child.
        step_state: the state of `step`.
        selects_only: whether nothing is evaluated but what recombines: no child, and no parent
            that stands beside pairs.
        batch_size: members to evaluate at a time on a device, under `jax.vmap`.
        unformed: how members are evaluated that are not formed, None where they are.
        judges_best: whether the best of those is to be evaluated once more, formed.

    Returns:
        What was found. Costs `size + 1` forward passes, one more where the best is judged, less
        what `selects_only` spares, and a draw for every member but the parent, or for every pair of
        antithetic ones; and device memory for `batch_size` members, or the activations of as many
        that are not formed. The program holds `fitness` once, and once more under `jax.vmap` if
        that is asked for.
    """
    kept = storage.start(members.genome.leaves())

    def keep(
        kept: Elites | None, member: jax.Array, value: jax.Array, leaves: Leaves
    ) -> Elites | None:
        return None if kept is None else storage.insert(kept, member, value, leaves)

    def batches(inside: Members, kept: Elites | None) -> tuple[Elites | None, jax.Array]:
        if unformed is None:
            return _batches(inside, fitness, place, keep, kept, batch_size=batch_size)
        return None, _unformed_batches(inside, place, unformed, batch_size=batch_size)

    if unformed is not None:
        unformed = unformed._replace(bases=place.beside_members(unformed.bases))
    elif batch_size == 1 and isinstance(place, Alone):
        return _one_by_one(members, fitness, keep, kept, child_of, step_state, selects_only)
    one_by_one = place.on_each(fitness)
    if selects_only:
        return _selected(
            members, one_by_one, batches, kept, child_of, step_state, unformed is not None
        )
    if unformed is not None:
        return _unformed(members, one_by_one, batches, child_of, step_state, judges_best)
    return _in_batches(members, one_by_one, batches, keep, kept, child_of, step_state)


def _one_by_one(
    members: Members,
    fitness: Fitness,
    keep: Keep,
    kept: Elites | None,
    child_of: ChildOf,
    step_state: optax.OptState,
    selects_only: bool,
) -> Scored:
    """One member after another and the child last, in the memory of one: one program for all."""
    # Where only what recombines is evaluated, a parent beside pairs is not, nor is the child.
    first = int(selects_only and members.antithetic)
    count = members.size + (not selects_only)

    def child(
        held: tuple[Carrier, optax.OptState],
        genome: Genome,
        kept: Elites | None,
        scores: jax.Array,
    ) -> tuple[Carrier, optax.OptState]:
        carrier, state = held
        inside = members.around(genome)
        scores = scores[: members.size]
        leaves, state = child_of(inside, kept, scores, members.carried(carrier), state)
        return inside.carry_child(leaves, carrier), state

    def one(
        index: jax.Array,
        carry: tuple[Elites | None, jax.Array, Carrier, optax.OptState],
    ) -> tuple[Elites | None, jax.Array, Carrier, optax.OptState]:
        kept, scores, carrier, state = carry
        last = index == members.size
        carrier = members.carry_next(index, carrier)
        if not selects_only:
            carrier, state = xla.at_most_once(
                last, child, (carrier, state), members.genome, kept, scores
            )
        leaves = members.leaves(carrier)
        value = fitness(leaves)
        # The child takes no place among the members.
        kept = keep(kept, index, jnp.where(last, jnp.inf, value), leaves)
        return kept, lax.dynamic_update_index_in_dim(scores, value, index, 0), carrier, state

    unknown = jnp.full([count], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.carry_parent(), step_state)
    kept, scores, *held = lax.fori_loop(jnp.int32(first), jnp.int32(count), one, start)
    of_child = scores[-1]
    if selects_only:
        always = ~xla.impossible(scores)
        held = xla.at_most_once(always, child, tuple(held), members.genome, kept, scores)
        of_child = jnp.full_like(of_child, jnp.inf)
    carrier, step_state = held
    return Scored(kept, scores[: members.size], members.carried(carrier), step_state, of_child)


def _selected(
    members: Members,
    one_by_one: Callable[[Leaves], jax.Array],
    batches: Batches,
    kept: Elites | None,
    child_of: ChildOf,
    step_state: optax.OptState,
    unformed: bool,
) -> Scored:
    """The members that recombine, some at a time, and then the child, which is not evaluated."""
    unknown = jnp.full([], jnp.inf, fitness_dtype())
    kept, scores = batches(members, kept)
    if members.antithetic or unformed:  # the parent is none of those
        of_parent = unknown if members.antithetic else one_by_one(members.genome.leaves())
        scores = jnp.append(of_parent, scores)
    child, step_state = child_of(members, kept, scores, None, step_state)
    return Scored(kept, scores, child, step_state, unknown)


def _in_batches(
    members: Members,
    one_by_one: Callable[[Leaves], jax.Array],
    batches: Batches,
    keep: Keep,
    kept: Elites | None,
    child_of: ChildOf,
    step_state: optax.OptState,
) -> Scored:
    """Some members at a time, in the memory of as many, on each device; then the child."""
    if not members.antithetic:  # the parent is one of the members
        kept, scores = batches(members, kept)
        child, step_state = child_of(members, kept, scores, None, step_state)
        return Scored(kept, scores, child, step_state, one_by_one(child))

    def rest(carry: _Carry, genome: Genome) -> _Carry:
        inside = members.around(genome)
        kept, scores, _, state = carry
        kept, found = batches(inside, kept)
        scores = jnp.append(scores[0], found)
        child, state = child_of(inside, kept, scores, None, state)
        return kept, scores, child, state

    def one(carry: _Carry, last: jax.Array) -> tuple[_Carry, jax.Array]:
        kept, scores, leaves, state = xla.at_most_once(last, rest, carry, members.genome)
        value = one_by_one(leaves)
        kept = keep(kept, jnp.int32(0), jnp.where(last, jnp.inf, value), leaves)
        return (kept, jnp.where(last, scores, scores.at[0].set(value)), leaves, state), value

    # The parent, which stands beside the pairs, and then all others: one program for two.
    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.genome.leaves(), step_state)
    (kept, scores, child, step_state), values = lax.scan(one, start, jnp.array([False, True]))
    return Scored(kept, scores, child, step_state, values[-1])


def _unformed(
    members: Members,
    one_by_one: Callable[[Leaves], jax.Array],
    batches: Batches,
    child_of: ChildOf,
    step_state: optax.OptState,
    judges_best: bool,
) -> Scored:
    """The parent; all others at most so many at a time; then the child, and the best one formed.

    What may become the parameters is evaluated as these: parent, child and the best member have
    one program, whose rounding is the same, and a member that bfloat16 would round is judged
    rounded.
    """

    def rest(carry: _Carry, genome: Genome) -> _Carry:
        inside = members.around(genome)
        kept, scores, _, state = carry
        kept, found = batches(inside, kept)
        scores = jnp.append(scores[0], found)
        return kept, scores, *child_of(inside, kept, scores, None, state)

    def one(carry: _Carry, trip: jax.Array) -> tuple[_Carry, jax.Array]:
        kept, scores, leaves, state = xla.at_most_once(trip == 1, rest, carry, members.genome)
        evaluated = leaves
        if judges_best:
            best = jnp.argmin(scores).astype(jnp.int32)
            evaluated = members.redrawn(best, (trip == 2) & (best > 0), leaves)
        value = one_by_one(evaluated)
        scores = jnp.where(trip == 0, scores.at[0].set(value), scores)
        return (kept, scores, leaves, state), value

    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start: _Carry = (None, unknown, members.genome.leaves(), step_state)
    trips = jnp.arange(2 + judges_best, dtype=jnp.int32)
    (_, scores, child, step_state), values = lax.scan(one, start, trips)
    of_best = jnp.where(jnp.argmin(scores) > 0, values[-1], values[0]) if judges_best else None
    return Scored(None, scores, child, step_state, values[1], of_best)


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
    most = min(most, count)
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
