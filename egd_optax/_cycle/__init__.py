"""One evolution cycle, a stage a file.

snapshot -> mutate -> evaluate -> select -> recombine -> resume
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._cycle.evaluate import AxisName, evaluate, fitness_dtype
from egd_optax._cycle.mutate import cycle_key, mutate
from egd_optax._cycle.paging import make_paging
from egd_optax._cycle.recombine import PARENT, Rule, accept, recombine
from egd_optax._cycle.resume import reset_base_state, resume, widen
from egd_optax._cycle.select import select
from egd_optax._cycle.snapshot import moving_leaves, snapshot

__all__ = ["CycleInfo", "CycleSpec", "moving_leaves", "no_cycle_yet", "run_cycle", "widen"]


class CycleSpec(NamedTuple):
    """What a cycle does; see the arguments of `egd_optax.evolve`."""

    population_size: int
    elite_count: int
    candidate_batch_size: int
    sigma: jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]
    relative_sigma: bool
    min_scale: jax.typing.ArrayLike
    rank: int | None
    recombine: Rule
    temperature: jax.typing.ArrayLike
    accept: str
    reset_base: bool
    mutable: object
    memory: str
    axis_name: AxisName


class CycleInfo(NamedTuple):
    """What the latest cycle did; every field is a scalar array that can be logged.

    Fitness is float32, or float64 where x64 is enabled, and +inf stands for a fitness
    that was not finite. Before the first cycle `cycle` is -1 and every fitness +inf.

    Attributes:
        cycle: int32, index of the cycle, from 0.
        parent_fitness: fitness of the base step's parameters, member 0.
        best_fitness: fitness of the best member, the parent included.
        mean_fitness: mean over the members of finite fitness.
        child_fitness: fitness of the recombined child.
        accepted: bool, whether the parameters left the parent.
        sigma: float like the fitness, the sigma that was used.
        evaluations: int32, forward passes of the cycle: the population and the child.
    """

    cycle: jax.Array
    parent_fitness: jax.Array
    best_fitness: jax.Array
    mean_fitness: jax.Array
    child_fitness: jax.Array
    accepted: jax.Array
    sigma: jax.Array
    evaluations: jax.Array


def no_cycle_yet() -> CycleInfo:
    """The info before the first cycle; each leaf a buffer of its own, to be donated."""

    def unknown() -> jax.Array:
        return jnp.full([], jnp.inf, fitness_dtype())

    return CycleInfo(
        cycle=jnp.full([], -1, jnp.int32),
        parent_fitness=unknown(),
        best_fitness=unknown(),
        mean_fitness=unknown(),
        child_fitness=unknown(),
        accepted=jnp.zeros([], jnp.bool_),
        sigma=jnp.zeros([], fitness_dtype()),
        evaluations=jnp.zeros([], jnp.int32),
    )


def run_cycle(
    spec: CycleSpec,
    base: optax.GradientTransformationExtraArgs,
    value_fn: Callable[..., Any],
    extra_args: Mapping[str, Any],
    *,
    params: optax.Params,
    base_updates: optax.Updates,
    base_state: optax.OptState,
    key_data: jax.Array,
    cycle: jax.Array,
) -> tuple[optax.Updates, optax.OptState, CycleInfo]:
    """Runs a cycle around the parameters that the base step leads to.

    Args:
        spec: what to do.
        base: the base optimizer, for its `init` after a jump.
        value_fn: the fitness of parameters.
        extra_args: extra arguments of `update`, for `value_fn`.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer.
        base_state: its state after the step.
        key_data: uint32 `[2]`, the key of the run.
        cycle: int32 `[]`, index of this cycle.

    Returns:
        The updates, the state of the base optimizer, and what happened. Costs
        `population_size + 1` forward passes.
    """
    sigma = spec.sigma(cycle) if callable(spec.sigma) else spec.sigma
    sigma = jnp.asarray(sigma, fitness_dtype())
    key = cycle_key(key_data, cycle)

    parent = snapshot(params, base_updates, spec.mutable)
    genome = parent.genome
    draw = mutate(
        parent,
        key,
        sigma=sigma,
        relative_sigma=spec.relative_sigma,
        min_scale=spec.min_scale,
        rank=spec.rank,
    )
    fitness = evaluate(value_fn, parent, extra_args=extra_args, axis_name=spec.axis_name)
    paging = make_paging(spec.memory, spec.elite_count, draw, genome)
    elites, scores = select(
        draw,
        fitness,
        paging,
        genome=genome,
        population_size=spec.population_size,
        elite_count=spec.elite_count,
        batch_size=spec.candidate_batch_size,
    )
    child = recombine(elites, genome, paging, rule=spec.recombine, temperature=spec.temperature)
    child_score = fitness(child)
    choice = accept(spec.accept, scores[0], elites.fitness[0], child_score)
    updates = resume(
        choice,
        child,
        elites.member[0],
        draw,
        params=params,
        base_updates=base_updates,
        moving=parent.moving,
    )
    if spec.reset_base:
        landed = optax.apply_updates(params, updates)
        base_state = reset_base_state(base, base_state, landed, choice != PARENT)
    info = _report(cycle, scores, child_score, choice, sigma)
    return updates, base_state, info


def _report(
    cycle: jax.Array,
    scores: jax.Array,
    child_score: jax.Array,
    choice: jax.Array,
    sigma: jax.Array,
) -> CycleInfo:
    finite = jnp.isfinite(scores)
    mean = jnp.sum(scores, where=finite) / jnp.maximum(jnp.sum(finite), 1)
    return CycleInfo(
        cycle=cycle,
        parent_fitness=scores[0],
        best_fitness=jnp.min(scores),
        mean_fitness=jnp.where(jnp.any(finite), mean, jnp.inf),
        child_fitness=child_score,
        accepted=choice != PARENT,
        sigma=sigma,
        evaluations=jnp.full([], scores.size + 1, jnp.int32),
    )
