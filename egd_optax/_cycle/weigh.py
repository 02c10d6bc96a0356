"""Stages 4 and 5 where nothing of a member is kept but its fitness: it is drawn again.

For the rule that weighs all members by rank: what one weighs is known when all are
evaluated, and by then none is held any more. And for noise of low rank, which is cheaper
to draw into the sum than a stored member is to write and to read. Antithetic members are
drawn once a pair.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle.branch import when
from egd_optax._cycle.evaluate import Fitness
from egd_optax._cycle.mutate import AllParts, Mutants, scaled
from egd_optax._cycle.select import in_batches, one_by_one
from egd_optax._cycle.snapshot import Genome, Leaves

# Draws of low rank that are added to the sum at a time: it is read and written once for all.
_AT_ONCE = 8


def score(mutants: Mutants, fitness: Fitness, *, batch_size: int) -> jax.Array:
    """Draws and evaluates every member of a generation and keeps none.

    Args:
        mutants: the members, see `Mutants`.
        fitness: the fitness of a member.
        batch_size: members to draw and evaluate at a time, under `jax.vmap`.

    Returns:
        The fitness of all members, `[size]`. Costs `size` forward passes and a draw for
        every member but the parent, or for every pair of antithetic ones.
    """
    if batch_size == 1:
        if mutants.low_rank:
            return _score_in_passing(mutants, fitness)
        return one_by_one(mutants, fitness, lambda kept, *_: kept, ())[1]
    sides = sides_of(mutants)

    def batch(carry: None, members: jax.Array) -> tuple[None, jax.Array]:
        inside, members = mutants.beside(members)
        parts = jax.vmap(inside.parts)(members)
        # One flat batch: XLA:CPU takes a slower way through two nested ones.
        both = [scaled(parts, side) for side in sides]
        flat = jax.tree.map(lambda *of_sides: jnp.concatenate(of_sides), *both)
        scores = jax.vmap(lambda parts: fitness(inside.place(parts)))(flat)
        return carry, scores.reshape(len(sides), -1).T

    _, scores = in_batches(batch, None, drawn_members(mutants), batch_size // len(sides))
    return jnp.append(fitness(mutants.genome.leaves()), scores)


def _score_in_passing(mutants: Mutants, fitness: Fitness) -> jax.Array:
    """Draws the parts of one member after another and evaluates it.

    Nothing asks for the member as a whole: XLA forms each leaf where it is used, and holds
    no more than that, and the parent: where a leaf is formed within a matrix product, to read
    parameters and updates instead takes longer.
    """
    holding = mutants._replace(genome=Genome(mutants.genome.leaves()))

    def one(parts: AllParts, member: jax.Array) -> tuple[AllParts, jax.Array]:
        second = mutants.is_second(member)
        parts = when((member > 0) & ~second, lambda _, at: mutants.parts(at), parts, member)
        parts = when(second, lambda parts: scaled(parts, -1), parts)
        return parts, fitness(holding.place(parts))

    members = jnp.arange(mutants.size, dtype=jnp.int32)
    of_parent = jax.tree.map(jnp.zeros_like, mutants.parts(members[0]))  # nothing is drawn
    _, scores = lax.scan(one, of_parent, members)
    return scores


def centered_ranks(fitness: jax.Array) -> jax.Array:
    """Weights that fall in equal steps from the best member to the worst, and sum to zero.

    Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
    Learning <https://arxiv.org/abs/1703.03864>`_, 2017. Scaled so that the positive weights
    sum to one. Members of equal fitness weigh the same.

    Args:
        fitness: `[n]`; +inf weighs nothing, and no rank is counted for it.

    Returns:
        Weights, `[n]` of the dtype of `fitness`; zeros where all fitness is equal.
    """
    finite = jnp.isfinite(fitness)
    ordered = jnp.sort(fitness)
    better = jnp.searchsorted(ordered, fitness, side="left")
    not_worse = jnp.searchsorted(ordered, fitness, side="right")
    wins = (jnp.sum(finite) - not_worse - better).astype(fitness.dtype)
    wins = jnp.where(finite, wins, 0)
    return wins / jnp.maximum(jnp.sum(jnp.maximum(wins, 0)), 1)


def elites_only(scores: jax.Array, weights: Callable[[jax.Array], jax.Array], k: int) -> jax.Array:
    """Weights of all members where only the best k have one.

    Args:
        scores: fitness of the members, `[n]`.
        weights: maps the fitness of the best, `[k]`, best first, to their weights `[k]`.
        k: how many weigh something.

    Returns:
        Weights, `[n]`; ties go to the smaller member index.
    """
    _, members = lax.top_k(-scores, k)
    found = weights(scores[members])
    return jnp.zeros(scores.shape, found.dtype).at[members].set(found)


def weighted_sum(
    mutants: Mutants,
    weights: jax.Array,
    total: Leaves,
    *,
    most: int,
    batch_size: int,
    terms: jax.Array | None = None,
) -> Leaves:
    """The sum of weight * (member - parent) over all members.

    Args:
        mutants: the members.
        weights: `[size]`; of a member without finite fitness zero.
        total: zeros like the genome, in float32 or wider.
        most: draws that can weigh anything, see `most_draws`; the others are not repeated.
        batch_size: members to draw at a time, under `jax.vmap`; more where that costs less.
        terms: which of these draws to sum, int32, and none where out of range; None for all.

    Returns:
        Leaves like the genome, in float32 or wider. Costs `most` draws; of full rank and one by
        one, those of weight zero are left out.
    """
    signs = sides_of(mutants)
    drawn = drawn_members(mutants)
    weight_of = weights[1:].reshape(-1, len(signs)) @ jnp.array(signs, weights.dtype)
    if most < drawn.size:  # in their order: `lax.top_k` is stable
        _, at = lax.top_k((weight_of != 0).astype(jnp.int32), most)
        drawn, weight_of = drawn[at], weight_of[at]
    if terms is not None:
        drawn = drawn.at[terms].get(mode="clip")
        weight_of = weight_of.at[terms].get(mode="fill", fill_value=0)

    if batch_size == 1 and not mutants.low_rank:

        def add_one(at: jax.Array, total: Leaves) -> Leaves:
            def add(total: Leaves, member: jax.Array, weight: jax.Array) -> Leaves:
                deviation = mutants.deviation(mutants.parts(member))
                return tuple(sum_ + weight * by for sum_, by in zip(total, deviation, strict=True))

            return when(weight_of[at] != 0, add, total, drawn[at], weight_of[at])

        result: Leaves = lax.fori_loop(0, drawn.size, add_one, total)
        return result

    def add_batch(total: Leaves, at: jax.Array) -> tuple[Leaves, None]:
        return tuple(
            map(jnp.add, total, mutants.weighted_deviation(drawn[at], weight_of[at]))
        ), None

    size = max(batch_size // len(signs), _AT_ONCE if mutants.low_rank else 1)
    total, _ = in_batches(add_batch, total, jnp.arange(drawn.size), size)
    return total


def most_draws(mutants: Mutants, members: int) -> int:
    """How many draws can weigh anything where so many members can."""
    return min(drawn_members(mutants).size, members)


def sides_of(mutants: Mutants) -> tuple[int, ...]:
    """The sides of the parent on which a drawn deviation has a member."""
    return (1, -1) if mutants.antithetic else (1,)


def drawn_members(mutants: Mutants) -> jax.Array:
    """The members that have a draw of their own, int32: all but parent and second of pairs."""
    return jnp.arange(1, mutants.size, 2 if mutants.antithetic else 1, dtype=jnp.int32)
