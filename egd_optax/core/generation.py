"""One round: snapshot, draw and evaluate, weigh, combine, accept."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import checked_state
from egd_optax.accept import BEST, CHILD, PARENT
from egd_optax.backend.devices import Devices, like_before
from egd_optax.backend.memory import memory_of
from egd_optax.backend.packing import Arrays
from egd_optax.core import auxiliary
from egd_optax.core.child import landed
from egd_optax.core.evaluate import NEVER, Evaluation, Scored
from egd_optax.core.fitness import Snapshot, fitness_dtype
from egd_optax.core.info import Generation, finite_mean
from egd_optax.core.judge import best_into, choose, judged
from egd_optax.core.population import Population, population_around
from egd_optax.core.spec import CycleSpec, NoiseAndSigma, Objectives, StrategyState
from egd_optax.core.stage import Round, score_with
from egd_optax.core.strategy import adapted_sigma, statistic_tree
from egd_optax.core.sums import statistic_of
from egd_optax.core.unformed import chunks_of
from egd_optax.noise.interface import Noise
from egd_optax.noise.outcome import Outcome
from egd_optax.sigma import Sigma

# Of parent, best member and child.
Three = tuple[jax.Array, jax.Array, jax.Array]


def run_generation(
    spec: CycleSpec,
    objectives: Objectives,
    snapshot: Snapshot,
    key: jax.Array,
    sigma: jax.Array,
    generation: jax.Array,
    state: StrategyState,
    devices: Devices,
) -> tuple[Arrays, StrategyState, Generation]:
    """Runs a generation.

    Args:
        spec: the settings of the cycle.
        objectives: the functions to select by.
        snapshot: the parameters after the base step.
        key: of the generation, uint32 `[2]`.
        sigma: float `[]`.
        generation: its index in the cycle, int32 `[]`.
        state: the state of the strategy.
        devices: share the members.

    Returns:
        The updates that it chose, in blocks, any if the parent stays; the next state of the
        strategy; and the report. The updates of integers count even then: they hold fractions.
    """
    sigma = adapted_sigma(spec, sigma, state)
    population = _population(spec, objectives, snapshot, key, sigma, state.of_noise)
    stage = Round(spec, snapshot, population, devices, sigma)
    objectives = objectives._replace(generation=generation)
    scored = _evaluated(stage, objectives, state.es_optimizer)
    best = _fitness_of_best(stage, scored)
    compared, scored = _compared(stage, objectives, scored, best)
    return concluded(stage, scored, best, compared, state)


def concluded(
    stage: Round, scored: Scored, best_fitness: jax.Array, compared: Three, state: StrategyState
) -> tuple[Arrays, StrategyState, Generation]:
    """Ends a generation whose candidates have their fitness.

    Args:
        stage: the parent and the members.
        scored: the child, and the fitness of all.
        best_fitness: that of the best member, `[]`.
        compared: the fitness by which the outcome is chosen.
        state: the state of the strategy.

    Returns:
        See `run_generation`.
    """
    spec, key = stage.spec, stage.population.key
    fitness = scored.fitness[: spec.member_count]
    moved = jnp.any(stage.weights(fitness, scored.seen)[1:] != 0)
    if type(spec.noise).std is Noise.std:  # another one may not use sigma
        moved &= stage.sigma != 0
    best = jnp.argmin(fitness).astype(jnp.int32)
    choice, of_rule = choose(spec.accept, key, compared, best, moved, state.accept)
    chosen = _chosen(stage, scored, choice, best, moved)
    outcome = _outcome(stage, scored, choice != PARENT)
    of_noise = _adapted("noise", spec.noise, state.of_noise, stage, outcome)
    if isinstance(spec.sigma, Sigma):
        of_sigma = _adapted("sigma", spec.sigma, state.of_sigma, stage, outcome)
        of_noise = NoiseAndSigma(of_noise, of_sigma)
    state = state._replace(
        noise=of_noise,
        es_optimizer=optax.tree.where(choice == CHILD, scored.es_state, state.es_optimizer),
        accept=of_rule,
    )
    return chosen, state, _summary(stage, scored, best_fitness, choice != PARENT)


def _population(
    spec: CycleSpec,
    objectives: Objectives,
    snapshot: Snapshot,
    key: jax.Array,
    sigma: jax.Array,
    noise_state: Any,
) -> Population:
    """The members around the parent, none of them drawn yet."""
    read = spec.noise.reads(objectives.base_state, noise_state)
    return population_around(
        snapshot.blocks,
        snapshot.positions,
        noise=spec.noise,
        mirrors=spec.antithetic,
        sigma=sigma,
        read=None if read is None else snapshot.leaves_of(read),
        key=key,
        refined=spec.refine and spec.refine.around(snapshot, objectives.extra_args),
    )


def _evaluated(stage: Round, objectives: Objectives, es_state: optax.OptState) -> Scored:
    """Evaluates all candidates, and makes the child."""
    spec, population = stage.spec, stage.population
    fitness = stage.fitness(objectives, objectives.value_fn)
    score = functools.partial(score_with, fitness)
    factored, batch_size = chunks_of(spec, population, fitness)
    in_chunks = factored is not None or batch_size > 1 or stage.devices.axis is not None
    memory = memory_of(spec.execution.memory, spec.support or 0)
    if spec.support is None or factored is not None or stage.devices.axis is not None:
        memory = memory_of("replay", 0)
    compares_best = objectives.accept_value_fn is None and spec.accept.takes_best
    evaluation = Evaluation(
        population=population,
        size=spec.member_count,
        score=score,
        score_many=(factored or score) if in_chunks else None,
        land=functools.partial(landed, stage, memory),
        devices=stage.devices,
        memory=memory,
        keeps=spec.support or 0 if memory.keeps and population.layout.whole else 0,
        batch_size=batch_size,
        with_parent=not spec.skips_parent,
        with_child=spec.accept.compares,
        best_again=factored is not None and compares_best,
    )
    seen = auxiliary.nothing_seen(
        spec.aux, fitness_dtype(), spec.recombine.reads, spec.member_count
    )
    return evaluation.run(es_state, seen)


def _fitness_of_best(stage: Round, scored: Scored) -> jax.Array:
    """The fitness of the best member, that of its second evaluation if it has one."""
    size = stage.spec.member_count
    fitness, again = scored.fitness[:size], scored.fitness[size + 1]
    best = jnp.argmin(fitness).astype(jnp.int32)
    return jnp.where((again == NEVER) | (best == 0), jnp.min(fitness), again)


def _compared(
    stage: Round, objectives: Objectives, scored: Scored, best_fitness: jax.Array
) -> tuple[Three, Scored]:
    """The fitness of parent, best member and child by which the outcome is chosen."""
    size = stage.spec.member_count
    child, value_fn = scored.fitness[size], objectives.accept_value_fn
    if value_fn is None:
        return (scored.fitness[0], best_fitness, child), scored
    best = jnp.argmin(scored.fitness[:size]).astype(jnp.int32)
    values, seen = judged(
        functools.partial(score_with, stage.fitness(objectives, value_fn)),
        stage.population,
        stage.devices,
        scored.held,
        best if stage.spec.accept.takes_best else None,
        scored.seen,
    )
    of_child = jnp.where(jnp.isfinite(child), values[2], jnp.inf)
    return (values[0], values[1], of_child), scored._replace(seen=seen)


def _chosen(
    stage: Round, scored: Scored, choice: jax.Array, best: jax.Array, moved: jax.Array
) -> Arrays:
    """The updates to the best member or the child, in blocks; to the parent of integers alone."""
    population, held = stage.population, scored.held
    if stage.spec.accept.takes_best:
        held = best_into(population, stage.spec.execution.memory, scored, best, choice == BEST)
    updates = list(population.updates_to(held))
    for at in population.of_integers:
        leaf = held.whole[population.layout.whole.index(at)]
        leaf = jnp.where(choice == PARENT, population.parent_block(at), leaf)
        beside = population.update_beside(at, leaf, updates[at])
        beside = jnp.where(moved, beside, population.base_update(at))
        updates[at] = jnp.where(choice == CHILD, updates[at], beside)
    return tuple(updates)


def _outcome(stage: Round, scored: Scored, accepted: jax.Array) -> Outcome:
    """The outcome of the generation, without the statistic of an operator."""
    fitness = scored.fitness[: stage.spec.member_count]
    weights = stage.weights(fitness, scored.seen)
    signs = jnp.array((1, -1)[: stage.spec.pair], weights.dtype)
    draws = weights[1:].reshape(-1, stage.spec.pair) @ signs
    return Outcome(fitness, weights, draws, scored.fitness[fitness.size], accepted, None)


def _adapted(name: str, operator: Noise | Sigma, state: Any, stage: Round, outcome: Outcome) -> Any:
    """The next state of an operator that adapts."""
    if operator.statistic is not None:
        sums = statistic_of(operator.statistic, stage.population, outcome.weights, stage.devices)
        leaves = stage.population.separate(sums)
        outcome = outcome._replace(statistic=statistic_tree(stage.spec, stage.snapshot, leaves))
    after = operator.adapt(state, outcome)
    return like_before(checked_state(f"{name}.adapt", operator, after, state), state)


def _summary(stage: Round, scored: Scored, best: jax.Array, accepted: jax.Array) -> Generation:
    spec = stage.spec
    fitness = scored.fitness[: spec.member_count]
    again = (scored.fitness[spec.member_count + 1] != NEVER).astype(jnp.int32)
    evaluations = spec.member_count - spec.skips_parent + spec.accept.compares + again
    return Generation(
        parent=fitness[0],
        best=best,
        mean=finite_mean(fitness),
        child=scored.fitness[spec.member_count],
        accepted=accepted,
        sigma=stage.sigma,
        evaluations=evaluations.astype(jnp.int32),
        aux=None if scored.seen is None else scored.seen.aux,
    )
