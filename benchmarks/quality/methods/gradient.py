"""Gradient descent: what a user has without this library."""

from collections.abc import Callable
import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    Streams,
    cosine,
    count,
    log_uniform,
    one_of,
    sample,
    streams,
)
from benchmarks.quality.problem import Batch, Objective, Params, Problem

Base = Callable[[Rates, int, jax.Array], optax.GradientTransformation]
MOMENTUM = 0.9


def descend(
    problem: Problem,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    keys: Streams,
    data: Batch,
    steps: int,
    seen: Callable[[jax.Array, Params], Params] = lambda at, params: params,
) -> Params:
    """Takes gradient steps from the initial parameters and returns the last ones.

    Args:
        problem: the problem.
        objective: what to descend on.
        optimizer: what takes the steps.
        keys: those of the run.
        data: what batches are drawn from.
        steps: how many.
        seen: maps the number of a step and parameters to those that the gradient is taken at.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(at: jax.Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        batch = sample(data, jax.random.fold_in(keys.batches, at), problem.batch_size)

        def gradient(params: Params) -> Params:
            return jax.grad(objective)(seen(at, params), batch)

        updates, state = optimizer.update(
            gradient(params), state, params, grad_fn=lambda params, _: gradient(params)
        )
        return optax.apply_updates(params, updates), state

    params = problem.init(keys.init)
    last, _ = lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
    return last


def sgd(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """SGD with momentum."""
    return optax.sgd(cosine(rates, steps), MOMENTUM)


def adam(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """Adam."""
    return optax.adam(cosine(rates, steps))


def adamw(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(cosine(rates, steps), weight_decay=rates["weight_decay"])


def noisy_sgd(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """SGD with noise on the gradient that vanishes over the run."""
    return optax.noisy_sgd(cosine(rates, steps), eta=rates["eta"], key=key)


def sam(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """Adam on the gradient at the worst place nearby."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rates["radius"]))
    return optax.contrib.sam(adam(rates, steps, key), ascent, opaque_mode=True)


def sgd_settings(rng: np.random.Generator) -> Settings:
    """Learning rates of SGD."""
    return {"learning_rate": log_uniform(rng, 1e-4, 1.0)}


def adam_settings(rng: np.random.Generator) -> Settings:
    """Learning rates of Adam."""
    return {"learning_rate": log_uniform(rng, 3e-5, 0.1)}


def plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    base: Base,
    gradients: int = 1,
    of: Callable[[Problem], Objective | None] = operator.attrgetter("loss"),
) -> Plan:
    """Descends for all of the budget on what `of` takes from the problem."""
    objective = of(problem)
    assert objective is not None
    prices = ledger.descent(problem, gradients)
    steps = prices.steps_within(budget)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        return descend(problem, objective, base(rates, steps, keys.noise), keys, data, steps)

    return Plan(prices.spent(steps), train)


def restarts_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Descends from several places and takes the end of the lowest training fitness."""
    restarts: int = static["restarts"]
    checked = min(count(problem.train), budget // restarts // 4 + 1)
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget // restarts - checked)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        def run(key: jax.Array) -> tuple[Params, jax.Array]:
            keys = streams(key)
            params = descend(
                problem, problem.loss, adam(rates, steps, keys.noise), keys, data, steps
            )
            batch = sample(data, keys.fitness, checked) if checked < count(data) else data
            return params, problem.fitness(params, batch)

        # The first starts where all methods start.
        others = jax.random.split(jax.random.fold_in(key, 1), restarts - 1)
        ends, fitness = lax.map(run, jnp.concatenate([key[None], others]))
        best = jnp.argmin(jnp.where(jnp.isfinite(fitness), fitness, jnp.inf))
        return jax.tree.map(lambda leaf: leaf[best], ends)

    return Plan(restarts * (prices.spent(steps) + checked), train)


def threshold_plan(problem: Problem, static: Static, budget: int) -> Plan:
    """Descends on the loss, then tunes the decision threshold on data of its own choice."""
    tune = problem.threshold
    assert tune is not None
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget - count(problem.train))

    def train(key: jax.Array, rates: Rates, data: tuple[Batch, Batch]) -> Params:
        keys = streams(key)
        optimizer = adam(rates, steps, keys.noise)
        return tune(descend(problem, problem.loss, optimizer, keys, data[0], steps), data[1])

    return Plan(prices.spent(steps) + count(problem.train), train)


def _has_threshold(problem: Problem) -> bool:
    return problem.threshold is not None


METHODS = (
    Method("sgd", sgd_settings, functools.partial(plan, base=sgd)),
    Method("adam", adam_settings, functools.partial(plan, base=adam)),
    Method(
        "adamw",
        lambda rng: {**adam_settings(rng), "weight_decay": log_uniform(rng, 1e-4, 1.0)},
        functools.partial(plan, base=adamw),
    ),
    Method(
        "noisy_sgd",
        lambda rng: {**sgd_settings(rng), "eta": log_uniform(rng, 1e-4, 10.0)},
        functools.partial(plan, base=noisy_sgd),
    ),
    Method(
        "sam",
        lambda rng: {**adam_settings(rng), "radius": log_uniform(rng, 0.01, 1.0)},
        functools.partial(plan, base=sam, gradients=2),
    ),
    Method("restarts", lambda rng: {**adam_settings(rng), "restarts": 4}, restarts_plan),
    Method(
        "many_restarts",
        lambda rng: {**adam_settings(rng), "restarts": one_of(rng, 16, 64)},
        restarts_plan,
        lambda problem: problem.kind == "global",
    ),
    Method(
        "adam_threshold",
        adam_settings,
        threshold_plan,
        _has_threshold,
        lambda problem: (problem.train, problem.train),
    ),
    Method(
        "adam_threshold_on_validation",
        adam_settings,
        threshold_plan,
        _has_threshold,
        lambda problem: (problem.train, problem.validation),
        settings_of=("adam_threshold",),
    ),
)
