"""Deciding within the budget whether cycles pay: the base alone or a preset around it.

A race runs both for a share of the budget, each at the learning rate that it was tuned with, and
goes on with the one whose fitness is lower then. Before it, `diagnose` may veto cycles at
a tenth of the base's run. All of that is paid for.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import presets, shares
from benchmarks.quality.methods.checkpoint import (
    ARMS,
    LIGHT,
    PAIRS,
    ask,
    end_of,
    objective_of,
    unit_of,
)
from benchmarks.quality.methods.cycles import Run, steady
from benchmarks.quality.methods.gradient import adam, adam_settings, descend
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    cosine,
    count,
    sample,
    samples,
    streams,
)
from benchmarks.quality.problem import Batch, Params, Problem
from egd_optax.diagnose import Diagnosis

# The budget over what each of two racers gets before they are compared.
FIFTH, TENTH = 5, 10
# Samples that they are compared on.
JUDGED = 1024
# What speaks against cycles, from an earlier trial; see docs/results/deciding.md.
HIGH_CORRELATION, LOW_RELIABILITY = 0.8, 0.08
# The base's run over where it is diagnosed, and on how many batches.
DIAGNOSED, BATCHES = 10, 4
BASE, PRESET = "base_", "preset_"


def both(base: Settings, preset: Settings) -> Settings:
    """The settings of two methods in one."""
    return {
        **{BASE + name: value for name, value in base.items()},
        **{PRESET + name: value for name, value in preset.items()},
    }


def only(prefix: str, settings: Settings | Rates | Static) -> dict[str, Any]:
    """Those of one of the two."""
    return {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if name.startswith(prefix)
    }


def plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    base: str,
    preset: Method,
    share: int,
    vetoes: bool,
) -> Plan:
    """A race, and before it perhaps a veto."""
    objective, unit = objective_of(problem, base), unit_of(problem, preset.name)
    price = ledger.descent(problem)
    ours = only(PRESET, static)
    judged = min(JUDGED, count(problem.train))
    asked = _price_of_a_diagnosis(problem, ours) if vetoes else 0
    early = budget // share
    # What is left for the winner, its early part included.
    rest = budget - asked - early - 2 * judged
    steps, early_steps = price.steps_within(rest), price.steps_within(early)
    all_steps = price.steps_within(budget - asked)
    diagnosed = steps // DIAGNOSED
    cycles = functools.partial(preset.plan, problem, ours, rest)
    whole, begun = cycles(), cycles(loop=functools.partial(_until, spent=early))

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        base_rates, preset_rates = only(BASE, rates), only(PRESET, rates)
        # A racer goes on where it stood: the same steps from the same seed.
        descent = functools.partial(
            descend, problem, objective, adam(base_rates, steps, keys.noise), keys, data
        )

        def raced() -> Params:
            batch = sample(data, keys.fitness, judged)
            found = problem.fitness(begun.train(key, preset_rates, data), batch)
            theirs = problem.fitness(descent(early_steps), batch)
            # One that has diverged loses, and where both have it is the base.
            wins = jnp.where(jnp.isnan(theirs), jnp.isfinite(found), found < theirs)
            return lax.cond(
                wins, lambda: whole.train(key, preset_rates, data), lambda: descent(steps)
            )

        def alone() -> Params:
            optimizer = optax.adam(_lengthened(base_rates, steps, all_steps, diagnosed))
            return descend(problem, objective, optimizer, keys, data, all_steps)

        if not vetoes:
            return raced()
        settings, fraction = {**preset_rates, **ours}, 1 / (DIAGNOSED * end_of(preset.name))
        params = descent(diagnosed)
        found = ask(problem, objective, params, settings, fraction, unit, keys, data, BATCHES)
        return lax.cond(_vetoes(problem, found), alone, raced)

    # Of the outcomes the one that costs most.
    won = max(whole.forwards + price.spent(early_steps), price.spent(steps) + early)
    race = won + 2 * judged
    return Plan(asked + (max(race, price.spent(all_steps)) if vetoes else race), train)


def _until(run: Run, params: Params, *, spent: int) -> Params:
    """A run that stops once so much is spent, with the schedules of the whole."""
    whole = run.timetable
    steps = min(run.prices.steps_within(spent), whole.steps)
    last = max(whole.last - (whole.steps - steps), 0)
    return steady(run._replace(timetable=whole._replace(steps=steps, last=last)), params)


def _lengthened(rates: Rates, planned: int, steps: int, since: int) -> optax.Schedule:
    """The learning rate of a run that turns out to be longer than planned."""
    before, after = cosine(rates, planned), cosine(rates, steps)
    return lambda step: jnp.where(step < since, before(step), after(step))


def _price_of_a_diagnosis(problem: Problem, static: Static) -> int:
    forwards = 4 * PAIRS + ledger.FORWARDS_PER_GRADIENT
    return BATCHES * forwards * samples(problem, static)


def _vetoes(problem: Problem, found: Diagnosis) -> jax.Array:
    """Whether the diagnoses of a checkpoint speak against cycles."""
    vetoed = jnp.nanmean(found.gradient_correlation) > HIGH_CORRELATION
    if problem.kind == "global":  # a function has one sample only
        return vetoed
    # A comparison with NaN, of pairs that all tie, is no veto.
    return vetoed | (jnp.nanmean(found.reliability) < LOW_RELIABILITY)


def name_of(way: str, base: str, preset: str) -> str:
    """The name of the records of a way to decide between a base and a preset."""
    return f"{way}_{preset}_on_{base}" if preset == LIGHT else f"{way}_{preset}"


def _methods(base: str, preset: Method) -> tuple[Method, ...]:
    applies = functools.partial(shares.on, base) if preset.name == LIGHT else preset.applies

    def method(way: str, share: int, *, vetoes: bool) -> Method:
        return Method(
            name_of(way, base, preset.name),
            adam_settings,
            functools.partial(plan, base=base, preset=preset, share=share, vetoes=vetoes),
            applies,
            settings_of=(base, preset.name),
            changed=both,
        )

    return (
        method("race", FIFTH, vetoes=False),
        method("vetoed_race", FIFTH, vetoes=True),
        method("vetoed_early_race", TENTH, vetoes=True),
    )


_PRESETS = {method.name: method for method in (*presets.OURS, shares.LIGHT[0])}
METHODS = tuple(method for base, name in ARMS for method in _methods(base, _PRESETS[name]))
