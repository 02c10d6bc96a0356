"""Evolution strategies: fitness alone, no gradient."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods.gradient import MOMENTUM, adam_settings
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    Streams,
    cosine,
    log_uniform,
    one_of,
    sample,
    samples,
    scale,
    streams,
)
from benchmarks.quality.problem import Batch, Params, Problem

# Builds an algorithm of evosax and its parameters.
Build = Callable[[int, Params, Rates, int, float], tuple[Any, Any]]


def open_es(
    population: int, params: Params, rates: Rates, generations: int, unit: float
) -> tuple[Any, Any]:
    """OpenAI-ES with SGD, whose rate is in units of the squared standard deviation."""
    from evosax.algorithms import Open_ES  # only where it runs: the tests do without

    sigma = rates["sigma"] * unit
    schedule = cosine({"learning_rate": rates["learning_rate"] * sigma**2}, generations)
    strategy = Open_ES(
        population,
        params,
        optimizer=optax.sgd(schedule, MOMENTUM),
        std_schedule=optax.constant_schedule(sigma),
    )
    return strategy, strategy.default_params


def sep_cma_es(
    population: int, params: Params, rates: Rates, generations: int, unit: float
) -> tuple[Any, Any]:
    """CMA-ES with a diagonal covariance, which adapts its own step."""
    from evosax.algorithms import Sep_CMA_ES

    strategy = Sep_CMA_ES(population, params)
    return strategy, strategy.default_params.replace(std_init=rates["sigma"] * unit)


def evosax_plan(build: Build) -> Callable[[Problem, Static, int], Plan]:
    """Runs an algorithm of evosax from the initial parameters, and takes its last mean."""

    def plan(problem: Problem, static: Static, budget: int) -> Plan:
        population, size, unit = static["population"], samples(problem, static), scale(problem)
        generations = ledger.within(budget, population * size)

        def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
            keys = streams(key)
            start = problem.init(keys.init)
            strategy, options = build(population, start, rates, generations, unit)

            def generation(at: jax.Array, state: Any) -> Any:
                ask_key, tell_key = jax.random.split(jax.random.fold_in(keys.noise, at))
                batch = batch_of(keys, at, data, size)
                members, state = strategy.ask(ask_key, state, options)
                fitness = jax.vmap(problem.fitness, (0, None))(members, batch)
                return strategy.tell(tell_key, members, fitness, state, options)[0]

            first = strategy.init(keys.noise, start, options)
            first = jax.tree.map(jnp.asarray, first)
            return strategy.get_mean(lax.fori_loop(0, generations, generation, first))

        return Plan(generations * population * size, train)

    return plan


def openai_es_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Adam on the slope of centered ranks over mirrored pairs, as in OpenAI-ES."""
    population, size = static["population"], samples(problem, static)
    generations = ledger.within(budget, population * size)
    search = openai_es(problem, static, generations)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        return search(problem.init(keys.init), keys, rates, data)

    return Plan(generations * population * size, train)


def openai_es(
    problem: Problem, static: Static, generations: int
) -> Callable[[Params, Streams, Rates, Batch], Params]:
    """What goes on from some parameters for so many generations of OpenAI-ES."""
    population, size, unit = static["population"], samples(problem, static), scale(problem)

    def search(params: Params, keys: Streams, rates: Rates, data: Batch) -> Params:
        start, unravel = ravel_pytree(params)
        optimizer = optax.adam(cosine(rates, generations))
        sigma = rates["sigma"] * unit

        def generation(at: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            mean, state = carry
            half = jax.random.normal(
                jax.random.fold_in(keys.noise, at), (population // 2, mean.size)
            )
            noise = jnp.concatenate([half, -half])
            batch = batch_of(keys, at, data, size)
            fitness = jax.vmap(lambda z: problem.fitness(unravel(mean + sigma * z), batch))(noise)
            slope = centered_ranks(fitness) @ noise / population
            updates, state = optimizer.update(slope, state, mean)
            return optax.apply_updates(mean, updates), state

        first = (start, optimizer.init(start))
        mean, _ = lax.fori_loop(0, generations, generation, first)
        return unravel(mean)

    return search


def centered_ranks(fitness: jax.Array) -> jax.Array:
    """Ranks from -0.5 for the lowest fitness to 0.5 for the highest, `[population]`."""
    return jnp.argsort(jnp.argsort(fitness)) / (fitness.size - 1) - 0.5


def batch_of(keys: Streams, at: jax.Array, data: Batch, size: int) -> Batch:
    """The samples of a generation."""
    return sample(data, jax.random.fold_in(keys.fitness, at), size)


def shape(rng: np.random.Generator) -> Settings:
    """What a generation is made of; sigma is in units of the initial parameters."""
    return {
        "sigma": log_uniform(rng, 0.01, 1.0),
        "population": one_of(rng, 16, 64, 256),
        "samples": one_of(rng, 16, 64),
    }


METHODS = (
    Method(
        "evosax_open_es",
        lambda rng: {"learning_rate": log_uniform(rng, 0.01, 30.0), **shape(rng)},
        evosax_plan(open_es),
    ),
    Method("evosax_sep_cma_es", shape, evosax_plan(sep_cma_es)),
    Method("openai_es", lambda rng: {**adam_settings(rng), **shape(rng)}, openai_es_plan),
)
