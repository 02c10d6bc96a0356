"""The ways to spend the compute; those that select members have a control with random ranks."""

from collections.abc import Callable
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import shares
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    cosine,
    sample,
    samples,
    streams,
)
from benchmarks.quality.methods.presets import slope
from benchmarks.quality.methods.straight_through import STRAIGHT_THROUGH
from benchmarks.quality.problem import Batch, Params, Problem
from egd_optax import Execution, evolve, presets

REFERENCE = "straight-through Adam"
LONGER = "straight-through Adam, 3 times the compute"
LIGHT, SHARE = "light cycles", "cycles on 69 %"
FINISH, STRATEGY = "finish on the word error", "OpenAI-ES on the word error"
RANDOM = ", random ranks"

Options = Callable[[Rates, Static, int], dict[str, Any]]


class Arm(NamedTuple):
    """A way to spend the compute.

    Attributes:
        method: what runs.
        grid: settings to try. `times` is what the learning rate that was tuned for the reference
            is multiplied by. Empty for an arm that takes over the settings of `settings_of`.
        settings_of: the arm whose settings it takes over.
        budget: of it, over that of the others.
    """

    method: Method
    grid: list[Settings]
    settings_of: str = ""
    budget: int = 1


def one_by_one(options: Options) -> Options:
    """The same arguments, with members that are evaluated one after another.

    A batch of words fills a CPU. All members at once take 1.7 times as long there.
    """

    def changed(rates: Rates, static: Static, total: int) -> dict[str, Any]:
        return {**options(rates, static, total), "execution": Execution()}

    return changed


def of_strategy(rates: Rates, static: Static, generations: int) -> dict[str, Any]:
    """Arguments of OpenAI's strategy, whose learning rate decays over the run.

    Weights of a trained network do not decay.
    """
    settings = presets.openai_es(
        cosine(rates, generations), population_size=static["population"], weight_decay=0.0
    )
    # The preset takes a number, which it checks; a traced one compiles once for all settings.
    return {**settings, "sigma": lambda cycle: rates["sigma"]}


def strategy_plan(problem: Problem, static: Static, budget: int, *, options: Options) -> Plan:
    """Generations without a gradient, from the pretrained parameters to the end."""
    price = static["population"] * samples(problem, static)
    generations = ledger.within(budget, price)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        tx = evolve(optax.set_to_zero(), key=keys.noise, **options(rates, static, generations))

        def generation(at: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, state = carry
            words = sample(data, jax.random.fold_in(keys.fitness, at), samples(problem, static))
            updates, state = tx.update(
                None, state, params, value_fn=lambda params: problem.fitness(params, words)
            )
            return optax.apply_updates(params, updates), state

        params = problem.init(keys.init)
        return lax.fori_loop(0, generations, generation, (params, tx.init(params)))[0]

    return Plan(generations * price, train)


def grid(fixed: Settings, **choices: tuple[Any, ...]) -> list[Settings]:
    """All combinations of some choices."""
    combined = itertools.product(*choices.values())
    return [{**dict(zip(choices, chosen, strict=True)), **fixed} for chosen in combined]


def with_control(
    name: str, plan: Callable[..., Plan], options: Options, tried: list[Settings]
) -> dict[str, Arm]:
    """An arm, and the same with ranks that say nothing of the fitness."""
    random = shares.with_random_ranks(options)
    ours, control = (functools.partial(plan, options=one) for one in (options, random))
    return {
        name: Arm(_method(name, ours), tried),
        name + RANDOM: Arm(_method(name + RANDOM, control), [], name),
    }


def _method(name: str, plan: Callable[..., Plan]) -> Method:
    # Settings come from a grid and are not drawn.
    return Method(name, lambda rng: {}, plan)


CYCLE = {
    "population": 64,
    "samples": 32,
    "recombine_step": 1.0,
    "noise": "low_rank",
    "decay": True,
    "accept": "always",
}
_CYCLES = one_by_one(slope)
_LIGHT, _SHARE = (
    functools.partial(shares.cycles_plan, share=share, window=window)
    for share, window in ((0.1, (0.0, 0.5)), (0.69, (0.0, 1.0)))
)
ARMS = {
    REFERENCE: Arm(
        _method(REFERENCE, STRAIGHT_THROUGH.plan),
        grid({}, learning_rate=(5e-5, 1e-4, 2e-4, 4e-4, 8e-4)),
    ),
    **with_control(LIGHT, _LIGHT, _CYCLES, grid(CYCLE, times=(1.0,), sigma=(0.01, 0.03, 0.12))),
    **with_control(SHARE, _SHARE, _CYCLES, grid(CYCLE, times=(1.0, 2.0), sigma=(0.01, 0.03, 0.12))),
    **with_control(
        FINISH,
        shares.finish_plan,
        shares.of_finish,
        grid(
            {"population": shares.MEMBERS, "recombine_step": 1.0},
            times=(1.0,),
            sigma=(0.003, 0.01, 0.03, 0.1),
        ),
    ),
    **with_control(
        STRATEGY,
        strategy_plan,
        of_strategy,
        grid(
            {"population": 32, "samples": 64},
            learning_rate=(3e-5, 1e-4, 3e-4),
            sigma=(0.003, 0.01),
        ),
    ),
    LONGER: Arm(_method(LONGER, STRAIGHT_THROUGH.plan), [], REFERENCE, 3),
}
