"""Stage 4, select: the k best members so far, as a stream.

Members are drawn, scored and forgotten one after another: the population is never
held whole, only the active member and the elites are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle.evaluate import Fitness, fitness_dtype
from egd_optax._cycle.mutate import Mutants
from egd_optax._cycle.paging import Pages, Paging, Visitor
from egd_optax._cycle.snapshot import Leaves

T = TypeVar("T")


class Elites(NamedTuple):
    """The k best members, best first; ties go to the smaller member index.

    Attributes:
        fitness: `[k]` of `fitness_dtype()`, ascending; +inf marks an empty place.
        member: int32 `[k]`, their indices in the population; 0 is the parent.
        page: int32 `[k]`, the page that holds each of them, a permutation.
        pages: the pages themselves.
    """

    fitness: jax.Array
    member: jax.Array
    page: jax.Array
    pages: Pages


def select(
    mutants: Mutants,
    fitness: Fitness,
    paging: Paging,
    *,
    elite_count: int,
    batch_size: int,
) -> tuple[Elites, jax.Array]:
    """Draws and evaluates every member of a generation and keeps the elites.

    Args:
        mutants: the members, see `Mutants`.
        fitness: the fitness of a member.
        paging: where elites are kept.
        elite_count: k, the members to keep.
        batch_size: members to evaluate at a time, under `jax.vmap`.

    Returns:
        The elites, and the fitness of all members, `[size]`. Costs `size` forward passes
        and a draw for every member but the parent, or for every pair of antithetic ones;
        and device memory for `batch_size` members.
    """
    empty = _no_elites(elite_count, paging, mutants.genome.leaves())

    def keep(elites: Elites, member: jax.Array, score: jax.Array, candidate: Leaves) -> Elites:
        return _insert(elites, member, score, candidate, paging)

    if batch_size == 1:
        return one_by_one(mutants, fitness, keep, empty)

    def batch(carry: tuple[Elites, Leaves], members: jax.Array) -> tuple[Any, jax.Array]:
        # Drawn one by one, so that an elite is the same to the bit if it is drawn again.
        _, candidates = lax.scan(
            lambda buffer, at: (mutants.follow(at, buffer),) * 2, carry[1], members
        )
        scores = jax.vmap(fitness)(candidates)

        def insert(at: jax.Array, carry: tuple[Elites, Leaves]) -> tuple[Elites, Leaves]:
            candidate = jax.tree.map(lambda leaf: leaf[at], candidates)
            return keep(carry[0], members[at], scores[at], candidate), candidate

        return lax.fori_loop(0, members.size, insert, carry), scores

    members = jnp.arange(mutants.size, dtype=jnp.int32)
    (elites, _), scores = in_batches(batch, (empty, mutants.genome.leaves()), members, batch_size)
    return elites, scores


def select_scored(scores: jax.Array, paging: Paging, *, elite_count: int) -> Elites:
    """The elites among members that are all evaluated, in the pages where `select` has them.

    Args:
        scores: fitness of the members, `[size]`.
        paging: where the elites are; it needs no member to keep one.
        elite_count: k, the members to keep.
    """

    def insert(member: jax.Array, elites: Elites) -> Elites:
        return _insert(elites, member, scores[member], (), paging)

    result: Elites = lax.fori_loop(0, scores.size, insert, _no_elites(elite_count, paging, ()))
    return result


def in_batches(
    fn: Callable[[T, jax.Array], tuple[T, Any]], carry: T, xs: jax.Array, size: int
) -> tuple[T, Any]:
    """`lax.scan` over `size` entries of `xs` at a time; the last batch has what is left.

    Args:
        fn: maps the carry and some entries to the carry and a result, `[entries, ...]`.
        carry: what to start from.
        xs: `[n]`.
        size: entries of a batch.

    Returns:
        The carry, and the results of all entries, `[n, ...]`.
    """
    size = min(size, xs.size)
    whole = xs.size // size * size
    carry, results = lax.scan(fn, carry, xs[:whole].reshape(-1, size))
    results = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), results)
    if whole < xs.size:
        carry, rest = fn(carry, xs[whole:])
        results = jax.tree.map(lambda *parts: jnp.concatenate(parts), results, rest)
    return carry, results


def one_by_one(
    mutants: Mutants,
    fitness: Fitness,
    keep: Callable[[T, jax.Array, jax.Array, Leaves], T],
    kept: T,
) -> tuple[T, jax.Array]:
    """Draws, evaluates and forgets one member after another, in one buffer.

    Args:
        mutants: the members.
        fitness: the fitness of a member.
        keep: maps what is kept, a member index, its fitness and its moving leaves to what
            is kept then.
        kept: what to start from.

    Returns:
        What is kept in the end, and the fitness of all members, `[size]`.
    """

    def one(carry: tuple[T, Leaves], member: jax.Array) -> tuple[tuple[T, Leaves], jax.Array]:
        kept, buffer = carry
        candidate = mutants.follow(member, buffer)
        score = fitness(candidate)
        return (keep(kept, member, score, candidate), candidate), score

    start = (kept, mutants.genome.leaves())  # the buffer to draw into holds the parent, member 0
    (kept, _), scores = lax.scan(one, start, jnp.arange(mutants.size, dtype=jnp.int32))
    return kept, scores


def _no_elites(count: int, paging: Paging, genome: Leaves) -> Elites:
    return Elites(
        fitness=jnp.full([count], jnp.inf, fitness_dtype()),
        member=jnp.zeros([count], jnp.int32),
        page=jnp.arange(count, dtype=jnp.int32),
        pages=paging.blank(genome),
    )


def _insert(
    elites: Elites, member: jax.Array, score: jax.Array, candidate: Leaves, paging: Paging
) -> Elites:
    """Ranks one more member; it takes over the page of the elite that drops out.

    The parent is never written to its page: it is at hand anyway.

    `lax.top_k` is stable and the newcomer stands last, so it goes behind elites of
    equal fitness, which have smaller indices. A fitness of +inf never gets in.
    """
    enters = score < elites.fitness[-1]
    freed = elites.page[-1]
    scores = jnp.append(elites.fitness, score)
    _, order = lax.top_k(-scores, elites.fitness.size)
    return Elites(
        fitness=scores[order],
        member=jnp.append(elites.member, member)[order],
        page=jnp.append(elites.page, freed)[order],
        pages=paging.write(elites.pages, freed, candidate, enters & (member > 0)),
    )


def read_best(elites: Elites, paging: Paging, on: jax.Array, buffer: Leaves) -> Leaves:
    """The best elite, which is not the parent, where `on` holds, in a buffer like the genome."""
    return paging.read(elites.pages, elites.page[0], elites.member[0], on, buffer)


def visit(elites: Elites, paging: Paging, on: jax.Array, fn: Visitor, carry: Leaves) -> Leaves:
    """Folds `carry[at] = fn(rank, at, leaf, carry[at])` over the leaves of elites with `on[rank]`.

    The parent is left out. In page order, which is the same in every memory mode, so that
    a sum over the elites is the same to the bit.
    """
    rank = jnp.argsort(elites.page)
    member = elites.member[rank]
    return paging.visit(
        elites.pages,
        member,
        on[rank] & (member > 0),
        lambda page, *leaf: fn(rank[page], *leaf),
        carry,
    )
