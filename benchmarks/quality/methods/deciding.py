"""Deciding within the budget whether cycles pay: the base alone or a preset around it.

A race runs both for a share of the budget, each at the learning rate that it was tuned with, and
goes on with the one whose fitness is lower then. Before it, `egd_optax.diagnose` may veto cycles at
a tenth of the base's run. All of that is paid for.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import presets
from benchmarks.quality.methods.cycles import Run, noise_of, steady
from benchmarks.quality.methods.gradient import adam, adam_settings, descend
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    Streams,
    cosine,
    count,
    sample,
    samples,
    scale,
    streams,
)
from benchmarks.quality.problem import Batch, Objective, Params, Problem
from egd_optax import diagnose

# The budget over what each of two racers gets before they are compared.
FIFTH, TENTH = 5, 10
# Samples that they are compared on.
JUDGED = 1024
# What speaks against cycles, from an earlier trial; see docs/guide/diagnosing.md.
HIGH_CORRELATION, LOW_RELIABILITY = 0.8, 0.08
# The base's run over where it is diagnosed, the pairs that this takes, and on how many batches.
DIAGNOSED, PAIRS, BATCHES = 10, 20, 4
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
    problem: Problem, static: Static, budget: int, *, preset: Method, share: int, vetoes: bool
) -> Plan:
    """A race, and before it perhaps a veto."""
    objective, unit = _objective(problem, preset), unit_of(problem, preset.name)
    price = ledger.descent(problem)
    judged = min(JUDGED, count(problem.train))
    asked = _price_of_a_diagnosis(problem, only(PRESET, static)) if vetoes else 0
    early = budget // share
    # What is left for the winner, its early part included.
    rest = budget - asked - early - 2 * judged
    steps, early_steps = price.steps_within(rest), price.steps_within(early)
    all_steps = price.steps_within(budget - asked)
    diagnosed = steps // DIAGNOSED
    cycles = functools.partial(preset.plan, problem, only(PRESET, static), rest)
    whole, begun = cycles(), cycles(loop=functools.partial(_until, spent=early))

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        base_rates, preset_rates = only(BASE, rates), only(PRESET, rates)
        # A racer goes on where it stood: the same steps from the same seed.
        base = functools.partial(
            descend, problem, objective, adam(base_rates, steps, keys.noise), keys, data
        )

        def raced() -> Params:
            batch = sample(data, keys.fitness, judged)
            ours = problem.fitness(begun.train(key, preset_rates, data), batch)
            theirs = problem.fitness(base(early_steps), batch)
            # One that has diverged loses, and where both have it is the base.
            wins = jnp.where(jnp.isnan(theirs), jnp.isfinite(ours), ours < theirs)
            return lax.cond(wins, lambda: whole.train(key, preset_rates, data), lambda: base(steps))

        def alone() -> Params:
            optimizer = optax.adam(_lengthened(base_rates, steps, all_steps, diagnosed))
            return descend(problem, objective, optimizer, keys, data, all_steps)

        if not vetoes:
            return raced()
        params = base(diagnosed)
        vetoed = _vetoed(problem, objective, params, unit, static, preset_rates, keys, data)
        return lax.cond(vetoed, alone, raced)

    race = rest + early + 2 * judged
    return Plan(asked + max(race, price.spent(all_steps)) if vetoes else race, train)


def _objective(problem: Problem, preset: Method) -> Objective:
    """What the base of a preset descends on."""
    stand_in = problem.straight_through if "straight_through" in preset.name else None
    return stand_in or problem.loss


def _until(run: Run, params: Params, *, spent: int) -> Params:
    """A run that stops once so much is spent, with the schedules of the whole."""
    steps = min(run.prices.steps_within(spent), run.timetable.steps)
    return steady(run._replace(timetable=run.timetable._replace(steps=steps)), params)


def _lengthened(rates: Rates, planned: int, steps: int, since: int) -> optax.Schedule:
    """The learning rate of a run that turns out to be longer than planned."""
    before, after = cosine(rates, planned), cosine(rates, steps)
    return lambda step: jnp.where(step < since, before(step), after(step))


def _price_of_a_diagnosis(problem: Problem, static: Static) -> int:
    forwards = 4 * PAIRS + ledger.FORWARDS_PER_GRADIENT
    return BATCHES * forwards * samples(problem, static)


def _vetoed(
    problem: Problem,
    objective: Objective,
    params: Params,
    unit: float | None,
    static: Static,
    rates: Rates,
    keys: Streams,
    data: Batch,
) -> jax.Array:
    """Whether the diagnosis of a checkpoint speaks against cycles."""
    ours = only(PRESET, static)
    sigma = sigma_at({**rates, **ours}, 1 / DIAGNOSED, unit)
    size = samples(problem, ours)

    def one(at: jax.Array) -> Any:
        key = jax.random.fold_in(keys.fitness, at)
        batch, other = (sample(data, key, size) for key in jax.random.split(key))
        return diagnose(
            lambda params: problem.fitness(params, batch), params,
            jax.grad(objective)(params, batch),
            other_value_fn=lambda params: problem.fitness(params, other),
            pairs=PAIRS, sigma=sigma,
            noise=noise_of(ours, relative=unit is None),
            key=jax.random.key_data(key),
        )  # fmt: skip

    found = lax.map(one, jnp.arange(BATCHES))
    # A comparison with NaN, of pairs that all tie, is no veto. A function has one sample only.
    unreliable = jnp.nanmean(found.reliability) < LOW_RELIABILITY
    if problem.kind == "global":
        unreliable = jnp.zeros([], jnp.bool_)
    return unreliable | (jnp.nanmean(found.gradient_correlation) > HIGH_CORRELATION)


def unit_of(problem: Problem, preset: str) -> float | None:
    """What sigma is a multiple of in a preset whose noise is not relative; else None."""
    return scale(problem) if preset == "global_" else None


def sigma_at(settings: Settings, fraction: float, unit: float | None) -> jax.typing.ArrayLike:
    """The sigma of a preset at a fraction of its run; `unit` is that of one that is absolute."""
    sigma = settings["sigma"]
    if unit is not None:
        return unit * sigma * presets.NEAR**fraction
    if settings["decay"]:
        return optax.cosine_decay_schedule(sigma, 1, presets.FLOOR)(fraction)
    return sigma


def _methods(preset: Method) -> tuple[Method, ...]:
    base = "straight_through" if "straight_through" in preset.name else "adam"

    def method(name: str, share: int, *, vetoes: bool) -> Method:
        return Method(
            f"{name}_{preset.name}",
            adam_settings,
            functools.partial(plan, preset=preset, share=share, vetoes=vetoes),
            preset.applies,
            settings_of=(base, preset.name),
            changed=both,
        )

    return (
        method("race", FIFTH, vetoes=False),
        method("vetoed_race", FIFTH, vetoes=True),
        method("vetoed_early_race", TENTH, vetoes=True),
    )


METHODS = tuple(
    method for preset in presets.OURS if preset.name != "safe" for method in _methods(preset)
)
