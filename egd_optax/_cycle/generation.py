"""One round of a cycle: mutate -> evaluate -> select -> recombine, and the choice among them."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._cycle import population, weigh
from egd_optax._cycle.branch import when
from egd_optax._cycle.evaluate import Fitness, evaluate
from egd_optax._cycle.mutate import Mutants, move, noise_std
from egd_optax._cycle.noise import nothing_yet
from egd_optax._cycle.paging import Paging, Replayed, make_paging, redrawn
from egd_optax._cycle.recombine import ELITE, PARENT, RANKED, Rule, accept, elite_weights, recombine
from egd_optax._cycle.select import Elites, read_best, select, select_scored
from egd_optax._cycle.snapshot import Genome, Leaves, Parent


class CycleSpec(NamedTuple):
    """What a cycle does; see the arguments of `egd_optax.evolve`."""

    population_size: int
    elite_count: int
    antithetic: bool
    generations: int
    candidate_batch_size: int
    sigma: jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]
    relative_sigma: bool
    min_scale: jax.typing.ArrayLike
    rank: int | None
    recombine: Rule
    recombine_step: jax.typing.ArrayLike
    temperature: jax.typing.ArrayLike
    accept: str
    reset_base: bool
    mutable: object
    memory: str
    axis_names: tuple[str, ...]
    population_axis: str | None
    mesh: population.AnyMesh | None

    @property
    def member_count(self) -> int:
        """The members of a generation, the parent included: antithetic pairs stand beside it."""
        return self.population_size + self.antithetic

    @property
    def keeps_elites(self) -> bool:
        """Whether elites are kept as they are found, in the way of `memory`; see `weigh`."""
        return self.recombine != RANKED and self.rank is None


class Objectives(NamedTuple):
    """What a cycle selects on.

    Attributes:
        value_fn: the fitness of parameters.
        accept_value_fn: the fitness that the outcome is judged by, or None for `value_fn`.
        extra_args: extra arguments of `update`, for those of their names that they take.
    """

    value_fn: Callable[..., Any]
    accept_value_fn: Callable[..., Any] | None
    extra_args: Mapping[str, Any]


class Outcome(NamedTuple):
    """What came of a generation; scalars.

    Attributes:
        moved: bool, whether it left its parent.
        parent: fitness of its parent; likewise:
        best: of its best member.
        mean: over its members of finite fitness, +inf if there is none.
        child: of its child.
    """

    moved: jax.Array
    parent: jax.Array
    best: jax.Array
    mean: jax.Array
    child: jax.Array


def run_generation(
    spec: CycleSpec,
    objectives: Objectives,
    parent: Parent,
    key: jax.Array,
    sigma: jax.Array,
    generation: jax.Array,
) -> tuple[Leaves, Outcome]:
    """Runs a generation.

    Args:
        spec: what to do.
        objectives: what to select on.
        parent: what to mutate.
        key: threefry key of the cycle.
        sigma: float `[]`.
        generation: its index in the cycle, int32 `[]`.

    Returns:
        The moving leaves that it chose, any where it did not move, and what came of it.
    """
    stds = tuple(
        noise_std(leaf, sigma, relative_sigma=spec.relative_sigma, min_scale=spec.min_scale)
        for leaf in parent.genome.leaves()
    )
    mutants_of = functools.partial(
        Mutants,
        moving=parent.moving,
        key=key,
        first=generation * spec.member_count,
        stds=stds,
        size=spec.member_count,
        antithetic=spec.antithetic,
        rank=spec.rank,
    )
    mutants = mutants_of(parent.genome)
    args = {"generation": generation, **objectives.extra_args}
    fitness = evaluate(objectives.value_fn, parent, extra_args=args, axis_names=spec.axis_names)
    if spec.population_axis is None:
        brood = _breed(spec, mutants, fitness)
    else:
        division = population.divide(
            spec.population_axis, spec.mesh, mutants, objectives.extra_args
        )
        brood = _breed_divided(spec, division, mutants, mutants_of, fitness)
    scores, child_score = brood.scores, fitness(brood.child)
    judged = scores[0], scores[brood.best], child_score
    if objectives.accept_value_fn is not None:
        judge = evaluate(
            objectives.accept_value_fn, parent, extra_args=args, axis_names=spec.axis_names
        )
        judged = _judged_by(judge, spec.accept, mutants, brood, child_score)
    choice = accept(spec.accept, *judged)
    finite = jnp.isfinite(scores)
    mean = jnp.sum(scores, where=finite) / jnp.maximum(jnp.sum(finite), 1)
    # The best elite comes over the child, of which there is no more need.
    return brood.read_best(choice == ELITE, brood.child), Outcome(
        moved=choice != PARENT,
        parent=scores[0],
        best=jnp.min(scores),
        mean=jnp.where(jnp.any(finite), mean, jnp.inf),
        child=child_score,
    )


class _Brood(NamedTuple):
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


def _breed(spec: CycleSpec, mutants: Mutants, fitness: Fitness) -> _Brood:
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
    return _Brood(child, scores, elites.member[0], best)


def _breed_divided(
    spec: CycleSpec,
    division: population.Division,
    mutants: Mutants,
    mutants_of: Callable[[Genome], Mutants],
    fitness: Fitness,
) -> _Brood:
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


def _brood_redrawn(mutants: Mutants, child: Leaves, scores: jax.Array) -> _Brood:
    """The brood of which no elite is kept."""
    best = jnp.argmin(scores).astype(jnp.int32)
    return _Brood(child, scores, best, functools.partial(redrawn, mutants, best))


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
    return tuple(nothing_yet(leaf, scores) for leaf in mutants.genome.leaves())


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


def _judged_by(
    judge: Fitness,
    rule: str,
    mutants: Mutants,
    brood: _Brood,
    child_score: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parent, best member and child on data that they were not selected on.

    The best member is judged only where the rule may take it.
    """
    genome = mutants.genome.leaves()
    parent = judge(genome)
    unjudged = jnp.full_like(parent, jnp.inf)
    elite = judge(brood.read_best(brood.best > 0, genome)) if rule == "best" else unjudged
    return parent, elite, jnp.where(jnp.isfinite(child_score), judge(brood.child), jnp.inf)
