"""What policies are found with: evolution of this library alone, evosax, and PPO."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import ppo, strategies
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    cosine,
    log_uniform,
    one_of,
    samples,
    scale,
    streams,
)
from benchmarks.quality.methods.presets import decaying
from benchmarks.quality.problem import Batch, Params, Problem
from egd_optax import Execution, accept, evolve, noise, recombine


def evolution(problem: Problem, static: Static, budget: int) -> Plan:
    """The strategy of OpenAI, which this library is around no base, with Adam on its direction."""
    population, size, unit = static["population"], samples(problem, static), scale(problem)
    generations = ledger.within(budget, population * size)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        sigma = _sigma(unit * rates["sigma"], static, generations)
        # What Adam remembers of wider noise would else shrink the steps of narrower noise.
        step = optax.chain(
            optax.scale_by_schedule(lambda generation: 1 / sigma(generation) ** 2),
            optax.adam(cosine(rates, generations)),
        )
        optimizer = evolve(
            optax.set_to_zero(),
            evolve_every=1,
            population_size=population,
            sigma=sigma,
            noise=noise.gaussian(relative=False),
            antithetic=True,
            recombine=recombine.centered_rank(),
            es_optimizer=step,
            accept=accept.always(),
            execution=Execution(candidate_batch_size=population),
            key=keys.noise,
        )

        def generation(at: jax.Array, carry: Any) -> Any:
            params, state = carry
            batch = strategies.batch_of(keys, at, data, size)
            updates, state = optimizer.update(
                None, state, params, evolve=True, value_fn=lambda p: problem.fitness(p, batch)
            )
            return optax.apply_updates(params, updates), state

        params = problem.init(keys.init)
        return lax.fori_loop(0, generations, generation, (params, optimizer.init(params)))[0]

    return Plan(generations * population * size, train)


def _sigma(first: jax.typing.ArrayLike, static: Static, generations: int) -> optax.Schedule:
    return decaying(first, generations) if static["decay"] else optax.constant_schedule(first)


def settings(rng: np.random.Generator) -> Settings:
    """Those of a strategy; sigma is in units of the initial parameters."""
    return {
        "sigma": log_uniform(rng, 0.1, 10.0),
        "population": one_of(rng, 8, 16, 32),
        "samples": one_of(rng, 1, 2),
    }


def with_rate(rng: np.random.Generator) -> Settings:
    """Those of a strategy whose direction goes through Adam."""
    return {
        **settings(rng),
        "learning_rate": log_uniform(rng, 0.01, 1.0),
        "decay": one_of(rng, False, True),
    }


def open_es(static: Static) -> strategies.Build:
    """The same strategy in evosax."""

    def build(
        population: int, params: Params, rates: Rates, generations: int, unit: float
    ) -> tuple[Any, Any]:
        from evosax.algorithms import Open_ES  # only where it runs: the tests do without

        strategy = Open_ES(
            population,
            params,
            optimizer=optax.adam(cosine(rates, generations)),
            std_schedule=_sigma(rates["sigma"] * unit, static, generations),
        )
        return strategy, strategy.default_params

    return build


def adaptive(name: str) -> Callable[[Static], strategies.Build]:
    """A strategy of evosax that adapts a sigma for each parameter; with Adam if that has a rate."""

    def build(
        population: int, params: Params, rates: Rates, generations: int, unit: float
    ) -> tuple[Any, Any]:
        import evosax.algorithms

        given = {}
        if "learning_rate" in rates:
            given["optimizer"] = optax.adam(cosine(rates, generations))
        strategy = getattr(evosax.algorithms, name)(population, params, **given)
        return strategy, strategy.default_params.replace(std_init=rates["sigma"] * unit)

    return lambda static: build


def _evosax(build: Callable[[Static], strategies.Build]) -> Callable[..., Plan]:
    def plan(problem: Problem, static: Static, budget: int) -> Plan:
        return strategies.evosax_plan(build(static))(problem, static, budget)

    return plan


METHODS = (
    *ppo.METHODS,
    Method("evolution", with_rate, evolution),
    Method("evosax_open_es", with_rate, _evosax(open_es)),
    Method("evosax_pgpe", with_rate, _evosax(adaptive("PGPE"))),
    Method("evosax_snes", settings, _evosax(adaptive("SNES"))),
    Method("evosax_sep_cma_es", settings, _evosax(adaptive("Sep_CMA_ES"))),
)
