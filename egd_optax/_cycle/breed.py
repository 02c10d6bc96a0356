"""Stages 2 to 5 of a generation: all members are scored, and some make a child."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._cycle import population, weigh
from egd_optax._cycle.branch import when
from egd_optax._cycle.evaluate import Fitness
from egd_optax._cycle.mutate import Mutants, move
from egd_optax._cycle.noise import sum_dtype
from egd_optax._cycle.paging import Paging, Replayed, make_paging, redrawn
from egd_optax._cycle.recombine import RANKED, elite_weights, recombine
from egd_optax._cycle.select import Elites, read_best, select, select_scored
from egd_optax._cycle.snapshot import Genome, Leaves
from egd_optax._cycle.spec import CycleSpec


class Brood(NamedTuple):
    """What a generation chooses from, besides its parent.

    Attributes:
        child: its moving leaves.
        scores: the fitness of all members.
        best: the member of best fitness, int32 `[]`.
        read_best: maps a bool `[]` and a buffer like the genome to that member where it holds,
            and the member is not the parent; else to the buffer.
    """

    child: Leaves
    scores: jax.Array
    best: jax.Array
    read_best: Callable[[jax.Array, Leaves], Leaves]


def breed(spec: CycleSpec, mutants: Mutants, fitness: Fitness) -> Brood:
    """Draws and evaluates every member, and makes a child of those that weigh something."""
    batch_size = spec.candidate_batch_size
    if not spec.keeps_elites:
        scores = weigh.score(mutants, fitness, batch_size=batch_size)
        total = _weighed(spec, scores, mutants, _nothing_yet(mutants, scores))
        child = _child(mutants, scores, lambda mutants, total: total, total)
        return _brood_redrawn(mutants, child, scores)
    paging = make_paging(spec.memory, spec.elite_count, mutants)
    elites, scores = select(
        mutants, fitness, paging, elite_count=spec.elite_count, batch_size=batch_size
    )
    step = functools.partial(_elite, spec, elites, paging)
    child = _child(mutants, scores, step, _nothing_yet(mutants, scores))
    best = functools.partial(read_best, elites, paging)
    return Brood(child, scores, elites.member[0], best)


def breed_divided(
    spec: CycleSpec,
    division: population.Division,
    mutants: Mutants,
    mutants_of: Callable[[Genome], Mutants],
    fitness: Fitness,
) -> Brood:
    """The same, with the work divided over devices: they store no elite in any memory mode."""
    scores = population.score(division, mutants, fitness, batch_size=spec.candidate_batch_size)
    genome = mutants.genome.leaves()
    shared = mutants_of(Genome(division.share(genome)))
    zeros = _nothing_yet(shared, scores)
    if not spec.keeps_elites:
        total = _weighed(spec, scores, shared, zeros, division=division)
    else:
        paging = Replayed(spec.elite_count, shared)
        elites = select_scored(scores, paging, elite_count=spec.elite_count)
        terms = division.terms(spec.elite_count)
        total = _elite(spec, elites, paging, shared, zeros, terms=terms)
    child = division.land(shared.genome.leaves(), total, genome)
    return _brood_redrawn(mutants, child, scores)


def _brood_redrawn(mutants: Mutants, child: Leaves, scores: jax.Array) -> Brood:
    """The brood of which no elite is kept."""
    best = jnp.argmin(scores).astype(jnp.int32)
    return Brood(child, scores, best, functools.partial(redrawn, mutants, best))


def _child(
    mutants: Mutants,
    scores: jax.Array,
    step: Callable[[Mutants, Leaves], Leaves],
    total: Leaves,
) -> Leaves:
    """The parent plus the step from it, `step(mutants, total)`.

    In a loop of one trip: XLA cannot know that no fitness is NaN. So it keeps no sum of
    parameters and updates from before the selection until here, nor does it compute the
    child anew in its evaluation, rounded in another way.
    """

    def land(total: Leaves, genome: Genome) -> Leaves:
        total = step(mutants._replace(genome=genome), total)
        landed = zip(move(genome.leaves(), total), total, strict=True)
        return tuple(leaf.astype(by.dtype) for leaf, by in landed)

    child = when(~jnp.any(jnp.isnan(scores)), land, total, mutants.genome)
    like = mutants.genome.params
    return tuple(leaf.astype(of.dtype) for leaf, of in zip(child, like, strict=True))


def _nothing_yet(mutants: Mutants, scores: jax.Array) -> Leaves:
    """Zeros to sum noise of the genome in, which XLA cannot make before the scores are known.

    It would: to start as early as it can, beside the active member in device memory.
    """
    zero = jnp.minimum(jnp.sum(scores != 0), 0)

    def zeros(leaf: jax.Array) -> jax.Array:
        dtype = sum_dtype(leaf.dtype)
        return jnp.zeros_like(leaf, dtype) + zero.astype(dtype)

    return tuple(map(zeros, mutants.genome.leaves()))


def _weighed(
    spec: CycleSpec,
    scores: jax.Array,
    mutants: Mutants,
    zeros: Leaves,
    *,
    division: population.Division | None = None,
) -> Leaves:
    """The step to the child that members make which are drawn again."""
    if spec.recombine == RANKED:
        count, weights = mutants.size, weigh.centered_ranks(scores)
    else:
        rule = functools.partial(elite_weights, spec.recombine, temperature=spec.temperature)
        count, weights = spec.elite_count, weigh.elites_only(scores, rule, spec.elite_count)
    most = weigh.most_draws(mutants, count)
    return weigh.weighted_sum(
        mutants,
        jnp.asarray(spec.recombine_step * weights),
        zeros,
        most=most,
        batch_size=spec.candidate_batch_size,
        terms=None if division is None else division.terms(most),
    )


def _elite(
    spec: CycleSpec,
    elites: Elites,
    paging: Paging,
    mutants: Mutants,
    zeros: Leaves,
    *,
    terms: jax.Array | None = None,
) -> Leaves:
    """The step to the child that the elites make."""
    return recombine(
        elites,
        mutants.genome,
        paging,
        zeros,
        rule=spec.recombine,
        temperature=spec.temperature,
        step=spec.recombine_step,
        terms=terms,
    )
