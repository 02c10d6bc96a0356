"""One round of a cycle: mutate -> evaluate -> select -> recombine, and the choice among them."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._cycle import population, weigh
from egd_optax._cycle.evaluate import Fitness, evaluate
from egd_optax._cycle.mutate import Mutants, move, noise_std
from egd_optax._cycle.paging import Paging, Replayed, make_paging
from egd_optax._cycle.recombine import PARENT, RANKED, Rule, accept, elite_weights, recombine
from egd_optax._cycle.resume import settle
from egd_optax._cycle.select import Elites, select, select_scored
from egd_optax._cycle.snapshot import Leaves, Parent


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
    genome: Leaves,
    key: jax.Array,
    sigma: jax.Array,
    generation: jax.Array,
) -> tuple[Leaves, Outcome]:
    """Runs a generation around `genome`.

    Args:
        spec: what to do.
        objectives: what to select on.
        parent: the snapshot, for the leaves that do not move.
        genome: the moving leaves to mutate.
        key: threefry key of the cycle.
        sigma: float `[]`.
        generation: its index in the cycle, int32 `[]`.

    Returns:
        The moving leaves that it chose, any where it did not move, and what came of it.
    """
    stds = tuple(
        noise_std(leaf, sigma, relative_sigma=spec.relative_sigma, min_scale=spec.min_scale)
        for leaf in genome
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
    mutants = mutants_of(genome)
    args = {"generation": generation, **objectives.extra_args}
    fitness = evaluate(objectives.value_fn, parent, extra_args=args, axis_names=spec.axis_names)
    if spec.population_axis is None:
        child, best, scores = _breed(spec, mutants, fitness)
    else:
        division = population.divide(
            spec.population_axis, spec.mesh, mutants, objectives.extra_args
        )
        child, best, scores = _breed_divided(spec, division, mutants, mutants_of, fitness)
    child_score = fitness(child)
    judged = scores[0], scores[best], child_score
    if objectives.accept_value_fn is not None:
        judge = evaluate(
            objectives.accept_value_fn, parent, extra_args=args, axis_names=spec.axis_names
        )
        judged = _judged_by(judge, spec.accept, mutants, best, child, child_score)
    choice = accept(spec.accept, *judged)
    finite = jnp.isfinite(scores)
    mean = jnp.sum(scores, where=finite) / jnp.maximum(jnp.sum(finite), 1)
    return settle(choice, child, best, mutants), Outcome(
        moved=choice != PARENT,
        parent=scores[0],
        best=jnp.min(scores),
        mean=jnp.where(jnp.any(finite), mean, jnp.inf),
        child=child_score,
    )


def _breed(
    spec: CycleSpec, mutants: Mutants, fitness: Fitness
) -> tuple[Leaves, jax.Array, jax.Array]:
    """The child, the index of the best member, and the fitness of all members."""
    batch_size = spec.candidate_batch_size
    if not spec.keeps_elites:
        scores = weigh.score(mutants, fitness, batch_size=batch_size)
        return move(mutants.genome, _weighed(spec, mutants, scores)), _best(scores), scores
    paging = make_paging(spec.memory, spec.elite_count, mutants)
    elites, scores = select(
        mutants, fitness, paging, elite_count=spec.elite_count, batch_size=batch_size
    )
    total = _elite(spec, mutants, elites, paging)
    return move(mutants.genome, total), elites.member[0], scores


def _breed_divided(
    spec: CycleSpec,
    division: population.Division,
    mutants: Mutants,
    mutants_of: Callable[[Leaves], Mutants],
    fitness: Fitness,
) -> tuple[Leaves, jax.Array, jax.Array]:
    """The same, with the work divided over devices: they store no elite in any memory mode."""
    scores = population.score(division, mutants, fitness, batch_size=spec.candidate_batch_size)
    shared = mutants_of(division.share(mutants.genome))
    if not spec.keeps_elites:
        total = _weighed(spec, shared, scores, division)
    else:
        paging = Replayed(spec.elite_count, shared.member)
        elites = select_scored(scores, paging, elite_count=spec.elite_count)
        total = _elite(spec, shared, elites, paging, division.terms(spec.elite_count))
    return division.land(shared.genome, total, mutants.genome), _best(scores), scores


def _weighed(
    spec: CycleSpec,
    mutants: Mutants,
    scores: jax.Array,
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
        most=most,
        batch_size=spec.candidate_batch_size,
        terms=None if division is None else division.terms(most),
    )


def _elite(
    spec: CycleSpec,
    mutants: Mutants,
    elites: Elites,
    paging: Paging,
    terms: jax.Array | None = None,
) -> Leaves:
    """The step to the child that the elites make."""
    return recombine(
        elites,
        mutants.genome,
        paging,
        rule=spec.recombine,
        temperature=spec.temperature,
        step=spec.recombine_step,
        terms=terms,
    )


def _best(scores: jax.Array) -> jax.Array:
    return jnp.argmin(scores).astype(jnp.int32)


def _judged_by(
    judge: Fitness,
    rule: str,
    mutants: Mutants,
    best: jax.Array,
    child: Leaves,
    child_score: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parent, best member and child on data that they were not selected on.

    The best member is judged only where the rule may take it.
    """
    parent = judge(mutants.genome)
    unjudged = jnp.full_like(parent, jnp.inf)
    elite = judge(mutants.draw(best, mutants.genome)) if rule == "best" else unjudged
    return parent, elite, jnp.where(jnp.isfinite(child_score), judge(child), jnp.inf)
