"""Cycles on a share of the compute, a finish on the metric, and both with random ranks."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import cycles
from benchmarks.quality.methods.cycles import Form, Run, Schedule
from benchmarks.quality.methods.gradient import adam, adam_settings, descend
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    count,
    log_uniform,
    one_of,
    sample,
    samples,
    streams,
)
from benchmarks.quality.methods.presets import METRIC, OURS, adapting, far_to_near, slope
from benchmarks.quality.methods.straight_through import STRAIGHT_THROUGH, has_stand_in
from benchmarks.quality.problem import Batch, Objective, Params, Problem
from egd_optax import Execution, evolve, presets, recombine

# What the names of controls end with.
RANDOM = "_random_ranks"
# The part of the compute that a finish gets, its members, and the generations that it should have.
LAST, MEMBERS, GENERATIONS = 0.1, 16, 4
# The fractions of a run between which light cycles are.
LIGHT_WINDOW = (0.0, 0.5)


def objective_of(problem: Problem) -> Objective:
    """What a user descends on: the trick if there is one, else the loss."""
    return problem.straight_through or problem.loss


def within_share(
    problem: Problem,
    static: Static,
    budget: int,
    generation: int,
    *,
    share: float,
    window: tuple[float, float],
) -> Schedule:
    """The longest run in the budget whose interval and window are those of the metric preset."""

    def schedule(steps: int) -> Schedule:
        settings = presets.metric(
            steps,
            share=share,
            window=window,
            samples=samples(problem, static) / problem.batch_size,
            population_size=static["population"],
        )
        interval, (_, stop) = settings["evolve_every"], settings["window"] or (0, steps)
        last = steps - stop // interval * interval
        prices = ledger.evolution(problem, interval, generation)
        spent = prices.spent(steps - last) + ledger.descent(problem).spent(last)
        return Schedule(steps, interval, 1, spent, last)

    steps = ledger.descent(problem).steps_within(budget)
    while (found := schedule(steps)).forwards > budget:
        steps -= 1
    return found


def on_share_settings(rng: np.random.Generator) -> Settings:
    """Those of the metric preset, with noise that decays; the interval follows from the share."""
    settings = METRIC.settings(rng)
    return {**{k: v for k, v in settings.items() if k != "interval"}, "decay": True}


def at_base_rate_settings(rng: np.random.Generator) -> Settings:
    """The same draws, and what the learning rate that was tuned for the base is multiplied by."""
    return {**on_share_settings(rng), "times": one_of(rng, 1.0, 2.0)}


def at_base_rate(drawn: Settings, base: Settings) -> Settings:
    """Settings with the learning rate of the base, or twice that."""
    others = {name: value for name, value in drawn.items() if name != "times"}
    return {**others, "learning_rate": drawn["times"] * base["learning_rate"]}


def as_shipped(drawn: Settings, sigma: float, base: Settings) -> Settings:
    """The settings of a preset that nobody tuned, with the learning rate of the base."""
    fixed = {"learning_rate": base["learning_rate"], "sigma": sigma, "recombine_step": 1.0}
    return {**drawn, **fixed}


def with_random_ranks(
    options: Callable[[Rates, Static, int], dict[str, Any]],
) -> Callable[[Rates, Static, int], dict[str, Any]]:
    """The same arguments, whose ranks say nothing of fitness."""

    def changed(rates: Rates, static: Static, total: int) -> dict[str, Any]:
        found = options(rates, static, total)
        return {**found, "recombine": recombine.shuffled(found["recombine"])}

    return changed


def cycles_plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    options: Callable[[Rates, Static, int], dict[str, Any]],
    share: float,
    window: tuple[float, float],
    loop: Callable[[Run, Params], Params] = cycles.steady,
) -> Plan:
    """Cycles on a share of the budget, around what a user would descend on."""
    stand_in = problem.straight_through is not None
    form = Form(adam, options, antithetic=True, straight_through=stand_in)
    schedule = functools.partial(within_share, share=share, window=window)
    return cycles.plan(problem, static, budget, form=form, schedule=schedule, loop=loop)


def finish_settings(rng: np.random.Generator) -> Settings:
    """The learning rate first, then sigma and step of the last generations."""
    return {
        **adam_settings(rng),
        "sigma": log_uniform(rng, 0.03, 0.3),
        "recombine_step": log_uniform(rng, 0.3, 3.0),
        "population": MEMBERS,
    }


def of_finish(rates: Rates, static: Static, generations: int) -> dict[str, Any]:
    """Arguments of the finish."""
    settings = presets.finish(generations, population_size=static["population"])
    sigma = settings["sigma"]
    return {
        **settings,
        # The preset takes a number, which it checks; the shape of its schedule is kept.
        "sigma": lambda cycle: rates["sigma"] / sigma(0) * sigma(cycle),
        "es_optimizer": optax.sgd(rates["recombine_step"]),
    }


def finish_plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    options: Callable[[Rates, Static, int], dict[str, Any]],
) -> Plan:
    """The base on its own schedule, then generations without a gradient on as many samples as fit.

    A generation sees the whole training set if four of them can be paid for, else fewer samples.
    """
    population, paid = static["population"], int(LAST * budget)
    size = min(count(problem.train), max(paid // (GENERATIONS * population), 1))
    generations = ledger.within(paid, population * size)
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget - generations * population * size)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        optimizer = adam(rates, steps, keys.noise)
        params = descend(problem, objective_of(problem), optimizer, keys, data, steps)
        tx = evolve(
            optax.set_to_zero(),
            key=keys.noise,
            execution=Execution(candidate_batch_size=population),
            **options(rates, static, generations),
        )

        def generation(at: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, state = carry
            whole = size == count(data)
            batch = data if whole else sample(data, jax.random.fold_in(keys.fitness, at), size)

            def value_fn(params: Params) -> jax.Array:
                return problem.fitness(params, batch)

            updates, state = tx.update(None, state, params, value_fn=value_fn, evolve=True)
            return optax.apply_updates(params, updates), state

        return lax.fori_loop(0, generations, generation, (params, tx.init(params)))[0]

    return Plan(prices.spent(steps) + generations * population * size, train)


def control_of(method: Method, plan: Callable[..., Plan]) -> Method:
    """A method with random ranks, and the settings that were tuned with selection."""
    return Method(
        method.name + RANDOM,
        method.settings,
        plan,
        method.applies,
        settings_of=(method.name,),
    )


def _with_control(
    name: str,
    settings: Callable[[np.random.Generator], Settings],
    plan: Callable[..., Plan],
    options: Callable[[Rates, Static, int], dict[str, Any]],
    **fixed: Any,
) -> tuple[Method, Method]:
    """A method and its control."""
    chosen = functools.partial(plan, options=options, **fixed)
    random = functools.partial(plan, options=with_random_ranks(options), **fixed)
    method = METRIC._replace(name=name, settings=settings, plan=chosen)
    return method, control_of(method, random)


def on(base: str, problem: Problem) -> bool:
    """Whether cycles can be around a base, and it is what a user would descend on."""
    stand_in = base == STRAIGHT_THROUGH.name
    return METRIC.applies(problem) and has_stand_in(problem) == stand_in


def _behind(
    base: str,
    ending: str,
    pair: tuple[Method, Method],
    changed: Callable[..., Settings],
    *,
    tuned: bool,
) -> tuple[Method, Method]:
    """A method whose settings follow from those of the base, and its control."""
    method, control = pair
    applies = functools.partial(on, base)
    method = method._replace(
        name=f"{method.name}_{ending}_{base}",
        applies=applies,
        settings_of=(base,),
        changed=changed,
        tuned_behind=tuned,
    )
    return method, control_of(method, control.plan)


def _control_as_shipped(
    method: Method, options: Callable[[Rates, Static, int], dict[str, Any]] = slope, **form: bool
) -> Method:
    """The control of a preset of the other tables."""
    changed = Form(adam, with_random_ranks(options), antithetic=True, **form)
    return control_of(method, functools.partial(cycles.plan, form=changed))


BASES = (STRAIGHT_THROUGH.name, "adam")
SHIPPED = {STRAIGHT_THROUGH.name: "metric_on_straight_through", "adam": "metric"}
# What the noise of the presets starts with.
OF_METRIC, OF_FINISH = (
    float(preset["sigma"](0)) for preset in (presets.metric(5000), presets.finish())
)
LIGHT, SHARE = (
    _with_control(name, at_base_rate_settings, cycles_plan, slope, share=share, window=window)
    for name, share, window in (("light", 0.1, LIGHT_WINDOW), ("share_30", 0.3, (0.0, 1.0)))
)
FINISH = _with_control("finish", finish_settings, finish_plan, of_finish)
_PRESETS = {method.name: method for method in OURS}
METHODS = (
    *(method._replace(settings=on_share_settings) for method in (*LIGHT, *SHARE)),
    *FINISH,
    _control_as_shipped(_PRESETS["metric_on_straight_through"], straight_through=True),
    _control_as_shipped(_PRESETS["metric"]),
    _control_as_shipped(_PRESETS["global_then_base"], far_to_near, absolute=True),
    _control_as_shipped(_PRESETS["global_adaptive"], adapting, absolute=True),
    *(
        method
        for base in BASES
        for pair, settings, sigma in (
            (LIGHT, on_share_settings, OF_METRIC),
            (SHARE, on_share_settings, OF_METRIC),
            (FINISH, finish_settings, OF_FINISH),
        )
        for method in _behind(
            base,
            "as_shipped_on",
            pair,
            functools.partial(as_shipped, settings(np.random.default_rng(0)), sigma),
            tuned=False,
        )
    ),
    *(
        method
        for base in BASES
        for pair in (LIGHT, SHARE)
        for method in _behind(base, "at_rate_of", pair, at_base_rate, tuned=True)
    ),
)
