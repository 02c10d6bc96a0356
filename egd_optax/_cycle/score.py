"""Mutate and evaluate: every member is drawn, scored and forgotten, and then their child."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import auxiliary, xla
from egd_optax._cycle.auxiliary import Evaluated, Seen
from egd_optax._cycle.batches import Keep, in_batches, unformed_in_batches
from egd_optax._cycle.elites import Elites
from egd_optax._cycle.fitness import Fitness, fitness_dtype
from egd_optax._cycle.members import Carrier, Members
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.place import Alone, Place
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.storage import Storage
from egd_optax._cycle.unformed import Unformed

# Scores the members but a parent that stands beside them, some at a time.
Batches = Callable[
    [Members, Elites | None, Seen | None], tuple[Elites | None, jax.Array, Seen | None]
]
# Makes the child of the members, from what is kept of them and the fitness of all, `[size]`, in the
# memory of a member that there is no more need of, if there is one; and the next state of `step`.
ChildOf = Callable[
    [Members, Elites | None, jax.Array, Leaves | None, optax.OptState],
    tuple[Leaves, optax.OptState],
]
# What is kept, the fitness of the members, the leaves that are evaluated next, the state of `step`,
# what was seen beside the fitness.
_Carry = tuple[Elites | None, jax.Array, Leaves, optax.OptState, Seen | None]


class Scored(NamedTuple):
    """All that a generation evaluates.

    Attributes:
        kept: the elites, None if nothing is stored of them.
        members: the fitness of all members, `[size]`, the same on all devices; +inf of a parent
            that was not evaluated.
        child: the child.
        optimizer_state: the state of `es_optimizer` behind it.
        of_child: its fitness, `[]`, +inf if it was not evaluated.
        seen: what came beside the fitness, None if nothing does.
        of_best: that of the best member as the parameters that it would become, `[]`; None
            where that is its score.
    """

    kept: Elites | None
    members: jax.Array
    child: Leaves
    optimizer_state: optax.OptState
    of_child: jax.Array
    seen: Seen | None
    of_best: jax.Array | None = None


def score(
    members: Members,
    fitness: Fitness,
    place: Place,
    storage: Storage,
    child_of: ChildOf,
    optimizer_state: optax.OptState,
    seen: Seen | None,
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
        optimizer_state: the state of `es_optimizer`.
        seen: what is kept of what comes beside the fitness, before the first evaluation; None if
            nothing is.
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

    def batches(
        inside: Members, kept: Elites | None, seen: Seen | None
    ) -> tuple[Elites | None, jax.Array, Seen | None]:
        if unformed is None:
            return in_batches(inside, fitness, place, keep, kept, seen, batch_size=batch_size)
        return None, *unformed_in_batches(inside, place, unformed, seen, batch_size=batch_size)

    if unformed is not None:
        unformed = unformed._replace(bases=place.beside_members(unformed.bases))
    elif batch_size == 1 and isinstance(place, Alone):
        return _one_by_one(
            members, fitness, keep, kept, child_of, optimizer_state, seen, selects_only
        )
    one_by_one = place.on_each(fitness)
    if selects_only:
        return _selected(
            members,
            one_by_one,
            batches,
            kept,
            child_of,
            optimizer_state,
            seen,
            unformed is not None,
        )
    if unformed is not None:
        return _unformed(members, one_by_one, batches, child_of, optimizer_state, seen, judges_best)
    return _in_batches(members, one_by_one, batches, keep, kept, child_of, optimizer_state, seen)


def _one_by_one(
    members: Members,
    fitness: Fitness,
    keep: Keep,
    kept: Elites | None,
    child_of: ChildOf,
    optimizer_state: optax.OptState,
    seen: Seen | None,
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
        carry: tuple[Elites | None, jax.Array, Carrier, optax.OptState, Seen | None],
    ) -> tuple[Elites | None, jax.Array, Carrier, optax.OptState, Seen | None]:
        kept, scores, carrier, state, seen = carry
        last = index == members.size
        carrier = members.carry_next(index, carrier)
        if not selects_only:
            carrier, state = xla.at_most_once(
                last, child, (carrier, state), members.genome, kept, scores
            )
        leaves = members.leaves(carrier)
        found = fitness(leaves)
        # The child takes no place among the members.
        kept = keep(kept, index, jnp.where(last, jnp.inf, found.value), leaves)
        scores = lax.dynamic_update_index_in_dim(scores, found.value, index, 0)
        seen = auxiliary.after_one(seen, found, index, members.size)
        return kept, scores, carrier, state, seen

    unknown = jnp.full([count], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.carry_parent(), optimizer_state, seen)
    kept, scores, *held, seen = lax.fori_loop(jnp.int32(first), jnp.int32(count), one, start)
    of_child = scores[-1]
    if selects_only:
        always = ~xla.impossible(scores)
        held = xla.at_most_once(always, child, tuple(held), members.genome, kept, scores)
        of_child = jnp.full_like(of_child, jnp.inf)
    carrier, optimizer_state = held
    child_leaves = members.carried(carrier)
    return Scored(kept, scores[: members.size], child_leaves, optimizer_state, of_child, seen)


def _selected(
    members: Members,
    one_by_one: Callable[[Leaves], Evaluated],
    batches: Batches,
    kept: Elites | None,
    child_of: ChildOf,
    optimizer_state: optax.OptState,
    seen: Seen | None,
    unformed: bool,
) -> Scored:
    """The members that recombine, some at a time, and then the child, which is not evaluated."""
    unknown = jnp.full([], jnp.inf, fitness_dtype())
    of_parent = unknown
    if unformed and not members.antithetic:
        found = one_by_one(members.genome.leaves())
        of_parent, seen = found.value, auxiliary.after_one(seen, found, 0, members.size)
    kept, scores, seen = batches(members, kept, seen)
    if members.antithetic or unformed:  # the parent is none of those
        scores = jnp.append(of_parent, scores)
    child, optimizer_state = child_of(members, kept, scores, None, optimizer_state)
    return Scored(kept, scores, child, optimizer_state, unknown, seen)


def _behind_the_parent(
    members: Members, batches: Batches, child_of: ChildOf
) -> Callable[[_Carry, Genome], _Carry]:
    """What follows the evaluation of a parent that is scored by itself: the others, their child."""

    def rest(carry: _Carry, genome: Genome) -> _Carry:
        inside = members.around(genome)
        kept, scores, _, state, seen = carry
        kept, found, seen = batches(inside, kept, seen)
        scores = jnp.append(scores[0], found)
        return kept, scores, *child_of(inside, kept, scores, None, state), seen

    return rest


def _in_batches(
    members: Members,
    one_by_one: Callable[[Leaves], Evaluated],
    batches: Batches,
    keep: Keep,
    kept: Elites | None,
    child_of: ChildOf,
    optimizer_state: optax.OptState,
    seen: Seen | None,
) -> Scored:
    """Some members at a time, in the memory of as many, on each device; then the child."""
    if not members.antithetic:  # the parent is one of the members
        kept, scores, seen = batches(members, kept, seen)
        child, optimizer_state = child_of(members, kept, scores, None, optimizer_state)
        of_child = one_by_one(child)
        seen = auxiliary.after_one(seen, of_child, members.size, members.size)
        return Scored(kept, scores, child, optimizer_state, of_child.value, seen)

    rest = _behind_the_parent(members, batches, child_of)

    def one(carry: _Carry, last: jax.Array) -> tuple[_Carry, jax.Array]:
        kept, scores, leaves, state, seen = xla.at_most_once(last, rest, carry, members.genome)
        found = one_by_one(leaves)
        value = found.value
        kept = keep(kept, jnp.int32(0), jnp.where(last, jnp.inf, value), leaves)
        scores = jnp.where(last, scores, scores.at[0].set(value))
        number = jnp.where(last, members.size, 0)
        seen = auxiliary.after_one(seen, found, number, members.size)
        return (kept, scores, leaves, state, seen), value

    # The parent, which stands beside the pairs, and then all others: one program for two.
    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start = (kept, unknown, members.genome.leaves(), optimizer_state, seen)
    (kept, scores, child, optimizer_state, seen), values = lax.scan(
        one, start, jnp.array([False, True])
    )
    return Scored(kept, scores, child, optimizer_state, values[-1], seen)


def _unformed(
    members: Members,
    one_by_one: Callable[[Leaves], Evaluated],
    batches: Batches,
    child_of: ChildOf,
    optimizer_state: optax.OptState,
    seen: Seen | None,
    judges_best: bool,
) -> Scored:
    """The parent; all others at most so many at a time; then the child, and the best one formed.

    What may become the parameters is evaluated as these: parent, child and the best member have
    one program, whose rounding is the same, and a member that bfloat16 would round is judged
    rounded.
    """
    rest = _behind_the_parent(members, batches, child_of)

    def one(carry: _Carry, trip: jax.Array) -> tuple[_Carry, jax.Array]:
        kept, scores, leaves, state, seen = xla.at_most_once(trip == 1, rest, carry, members.genome)
        evaluated, number = leaves, trip * members.size
        if judges_best:
            best = jnp.argmin(scores).astype(jnp.int32)
            evaluated = members.redrawn(best, (trip == 2) & (best > 0), leaves)
            # Where the parent is the best, nothing that is kept is evaluated once more.
            number = jnp.where(trip == 2, members.size + jnp.where(best > 0, 1, 2), number)
        found = one_by_one(evaluated)
        scores = jnp.where(trip == 0, scores.at[0].set(found.value), scores)
        seen = auxiliary.after_one(seen, found, number, members.size)
        return (kept, scores, leaves, state, seen), found.value

    unknown = jnp.full([members.size], jnp.inf, fitness_dtype())
    start: _Carry = (None, unknown, members.genome.leaves(), optimizer_state, seen)
    trips = jnp.arange(2 + judges_best, dtype=jnp.int32)
    (_, scores, child, optimizer_state, seen), values = lax.scan(one, start, trips)
    of_best = jnp.where(jnp.argmin(scores) > 0, values[-1], values[0]) if judges_best else None
    return Scored(None, scores, child, optimizer_state, values[1], seen, of_best)
