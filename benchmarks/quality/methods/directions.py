"""The metric preset on straight-through gradients with one change each: better directions?

Not here: fitness as a difference from the parent on the same samples. All members of a generation
see the same ones, so that what is subtracted is the same for all, and ranks stay as they are.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import cycles, operators
from benchmarks.quality.methods.cycles import Carry, Form, Run
from benchmarks.quality.methods.gradient import adam, adam_settings
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    cosine,
    log_uniform,
    one_of,
    sample,
    streams,
)
from benchmarks.quality.methods.presets import METRIC, slope
from benchmarks.quality.methods.straight_through import has_stand_in
from benchmarks.quality.methods.variants import settings_with, with_noise
from benchmarks.quality.problem import Batch, Params, Problem
from egd_optax import Execution

PREFIX = "direction_"
# Directions that are remembered.
REMEMBERED = 8
# What the members of late cycles are fewer by, and their samples more.
LATE = 4


def second_moments(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments of the metric preset with noise by Adam's second moments."""
    return {**slope(rates, static, total), "noise": operators.ByMoments()}


def remembered(run: Run, params: Params) -> Params:
    """A part of the noise lies in the span of the steps that the latest cycles took."""
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    share = float(run.static["share"])  # no float in settings, which would be traced

    def shape(pair: jax.Array, normal: Params, memory: jax.Array) -> Params:
        # Of a basis, so that steps that are alike count once.
        basis = jnp.linalg.qr(memory.T)[0]
        whole = jax.flatten_util.ravel_pytree(normal)[0]
        inside = basis @ (basis.T @ whole)
        known = jnp.any(memory != 0, axis=1).all()
        # A projection has REMEMBERED of flat.size squares: scaled up to a share of the variance.
        more = inside * jnp.sqrt(share * flat.size / REMEMBERED)
        return unflatten(jnp.where(known, jnp.sqrt(1 - share) * whole + more, whole))

    def remember(memory: jax.Array, step: Params, number: jax.Array) -> jax.Array:
        return memory.at[number % REMEMBERED].set(jax.flatten_util.ravel_pytree(step)[0])

    return with_noise(run, params, shape, jnp.zeros([REMEMBERED, flat.size]), remember)


def late_samples(run: Run, params: Params) -> Params:
    """In the second half of the run fewer members, each on more samples, for the same price."""
    early = run.optimizer(run.rates)
    population = run.static["population"] // LATE
    late = run.optimizer(
        run.rates,
        population_size=population,
        execution=Execution(candidate_batch_size=population),
    )

    def idle(at: jax.Array, carry: Carry) -> Carry:
        return run.step(at, carry, early, evolve=False)[0]

    def evolving(at: jax.Array, carry: Carry) -> Carry:
        many = functools.partial(run.step, optimizer=early, evolve=True)
        few = functools.partial(
            run.step, optimizer=late, evolve=True, size=LATE * run.static["samples"]
        )
        return lax.cond(at < run.timetable.steps // 2, many, few, at, carry)[0]

    return cycles.in_periods(run.timetable, idle, evolving, (params, early.init(params)))[0]


def averaged(run: Run, params: Params) -> Params:
    """The average of the parameters after each cycle of the second half."""
    optimizer = run.optimizer(run.rates)
    average = Average(run.timetable.steps // 2)

    def idle(at: jax.Array, carry: tuple[Carry, Any]) -> tuple[Carry, Any]:
        return run.step(at, carry[0], optimizer, evolve=False)[0], carry[1]

    def evolving(at: jax.Array, carry: tuple[Carry, Any]) -> tuple[Carry, Any]:
        inner = run.step(at, carry[0], optimizer, evolve=True)[0]
        return inner, average.with_params(carry[1], inner[0], at)

    start = (params, optimizer.init(params)), average.start(params)
    _, (mean, _) = cycles.in_periods(run.timetable, idle, evolving, start)
    return mean


class Average:
    """A running mean over the steps from one on."""

    def __init__(self, first: int) -> None:
        """Of the steps from `first` on."""
        self.first = first

    def start(self, params: Params) -> tuple[Params, jax.Array]:
        """Before the first of them: the mean, and of how many."""
        return params, jnp.zeros([])

    def with_params(
        self, mean: tuple[Params, jax.Array], params: Params, at: jax.Array
    ) -> tuple[Params, jax.Array]:
        """With the parameters of one more step."""
        before, count = mean
        count += at >= self.first
        share = jnp.where(at >= self.first, 1 / jnp.maximum(count, 1), 0)
        return jax.tree.map(lambda old, new: old + share * (new - old), before, params), count


def averaged_gradient(problem: Problem, static: Static, budget: int) -> Plan:
    """The control of `averaged`: Adam on straight-through gradients, with the same average."""
    objective = problem.straight_through
    assert objective is not None
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget)
    average = Average(steps // 2)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        optimizer = adam(rates, steps, keys.noise)

        def step(at: jax.Array, carry: Any) -> Any:
            params, state, mean = carry
            batch = sample(data, jax.random.fold_in(keys.batches, at), problem.batch_size)
            updates, state = optimizer.update(jax.grad(objective)(params, batch), state, params)
            params = optax.apply_updates(params, updates)
            return params, state, average.with_params(mean, params, at)

        params = problem.init(keys.init)
        start = params, optimizer.init(params), average.start(params)
        return lax.fori_loop(0, steps, step, start)[2][0]

    return Plan(prices.spent(steps), train)


def through_adam(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """The direction of a cycle through Adam, as in OpenAI's evolution strategy."""
    schedule = cosine({"learning_rate": rates["step_rate"]}, total)
    return {**slope(rates, static, total), "es_optimizer": optax.adam(schedule)}


def through_adam_settings(rng: np.random.Generator) -> Settings:
    """Those of the metric preset, and the learning rate of that Adam."""
    settings = METRIC.settings(rng)
    del settings["recombine_step"]
    return {**settings, "recombine_step": 1.0, "step_rate": log_uniform(rng, 1e-4, 3e-2)}


def rare_settings(rng: np.random.Generator) -> Settings:
    """Those of a direction through Adam, and how often there is one."""
    return {**through_adam_settings(rng), "interval": one_of(rng, 5, 20, 80)}


def often_settings(rng: np.random.Generator) -> Settings:
    """Few members in every step, as much compute for cycles, or less, and a wider grid of rates."""
    return {
        **through_adam_settings(rng),
        "step_rate": log_uniform(rng, 1e-4, 0.1),
        "population": one_of(rng, 4, 16),
        "interval": 1,
        "noise": "full_rank",
    }


def remembered_settings(rng: np.random.Generator) -> Settings:
    """Those of the metric preset, and the share of the variance that follows earlier steps."""
    return {**METRIC.settings(rng), "share": one_of(rng, "0.1", "0.3", "0.5")}


def _direction(
    name: str, options: Any = slope, settings: Any = METRIC.settings, **plan: Any
) -> Method:
    form = Form(adam, options, antithetic=True, straight_through=True)
    return METRIC._replace(
        name=PREFIX + name,
        settings=settings,
        plan=functools.partial(cycles.plan, form=form, **plan),
        applies=has_stand_in,
    )


METHODS = (
    _direction("as_it_is"),
    _direction("full_rank", settings=settings_with(noise="full_rank")),
    _direction("second_moments", second_moments),
    _direction("remembered", settings=remembered_settings, loop=remembered),
    _direction("late_samples", loop=late_samples),
    _direction("through_adam", through_adam, through_adam_settings),
    _direction("rare_through_adam", through_adam, rare_settings),
    _direction("often_through_adam", through_adam, often_settings),
    _direction("averaged", loop=averaged),
    Method(PREFIX + "averaged_gradient", adam_settings, averaged_gradient, has_stand_in),
)
