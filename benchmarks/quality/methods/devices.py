"""What a device is trained with that differs from its model: baselines for sealed chips.

Physics-aware training itself is `straight_through` there, and `straight_through_3x` puts as many
samples through the device as an evolution strategy does.
"""

import functools
import operator

import jax
from jax import lax
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods.gradient import adam, adam_settings, descend, plan
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    log_uniform,
    one_of,
    samples,
    scale,
    streams,
)
from benchmarks.quality.methods.straight_through import STRAIGHT_THROUGH
from benchmarks.quality.methods.strategies import batch_of, openai_es, shape
from benchmarks.quality.problem import Batch, Params, Problem

# Of SPSA: how its steps and its perturbations shrink, as Spall recommends.
STEP_DECAY, PERTURBATION_DECAY = 0.602, 0.101


def is_device(problem: Problem) -> bool:
    """Whether the problem is a device beside a model of it."""
    return problem.read_out is not None


def noise_injection_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Adam on the model with errors drawn anew in every step; the device is not asked."""
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        optimizer = adam(rates, steps, keys.noise)

        def with_errors(at: jax.Array, params: Params) -> Params:
            key = jax.random.fold_in(keys.noise, at)
            errors = optax.tree.random_like(key, params, jax.random.normal)
            return optax.tree.add_scale(params, rates["error"], errors)

        return descend(problem, problem.loss, optimizer, keys, data, steps, with_errors)

    return Plan(prices.spent(steps), train)


def then_es_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Physics-aware training for some quarters of the budget, then OpenAI-ES on the device."""
    before = STRAIGHT_THROUGH.plan(problem, static, static["quarters"] * budget // 4)
    generation = static["population"] * samples(problem, static)
    generations = ledger.within(budget - before.forwards, generation)
    search = openai_es(problem, static, generations)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        params = before.train(key, rates, data)
        keys = streams(key)
        later = keys._replace(fitness=jax.random.fold_in(keys.fitness, 1))
        return search(params, later, {**rates, "learning_rate": rates["es_learning_rate"]}, data)

    return Plan(before.forwards + generations * generation, train)


def spsa_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Simultaneous perturbation (Spall 1992), with his decays of step and perturbation."""
    size, unit = samples(problem, static), scale(problem)
    steps = ledger.within(budget, 2 * size)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)

        def step(at: jax.Array, params: Params) -> Params:
            batch = batch_of(keys, at, data, size)
            signs = optax.tree.random_like(
                jax.random.fold_in(keys.noise, at), params, jax.random.rademacher
            )
            reach = unit * rates["sigma"] / (1 + at) ** PERTURBATION_DECAY
            rate = rates["learning_rate"] / (1 + at + steps / 10) ** STEP_DECAY
            one, other = (
                problem.fitness(optax.tree.add_scale(params, way * reach, signs), batch)
                for way in (1, -1)
            )
            return optax.tree.add_scale(params, -rate * (one - other) / (2 * reach), signs)

        return lax.fori_loop(0, steps, step, problem.init(keys.init))

    return Plan(2 * steps * size, train)


def spsa_settings(rng: np.random.Generator) -> Settings:
    """Sigma is in units of the initial parameters; the step is that of the recommended decay."""
    return {
        "learning_rate": log_uniform(rng, 0.01, 30.0),
        "sigma": log_uniform(rng, 0.003, 0.3),
        "samples": one_of(rng, 16, 64),
    }


LAST_ON_THE_DEVICE = (
    Method(
        "straight_through_then_es",
        lambda rng: {
            **adam_settings(rng),
            "es_learning_rate": log_uniform(rng, 3e-5, 0.1),
            **shape(rng),
            "quarters": one_of(rng, 1, 2, 3),
        },
        then_es_plan,
        is_device,
    ),
    Method("spsa", spsa_settings, spsa_plan, is_device),
)

METHODS = (
    Method(
        "layers_read_out",
        adam_settings,
        functools.partial(plan, base=adam, of=operator.attrgetter("read_out")),
        is_device,
    ),
    Method(
        "noise_injection",
        lambda rng: {**adam_settings(rng), "error": log_uniform(rng, 0.05, 2.0)},
        noise_injection_plan,
        is_device,
    ),
    *LAST_ON_THE_DEVICE,
)
