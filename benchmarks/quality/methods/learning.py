"""Members that learn before they are scored, after Evolutionary Stochastic Gradient Descent.

Cui et al. 2018, https://arxiv.org/abs/1810.06773. Each member takes a few steps of Adam on what a
user would descend on. The ledger counts them as all other gradients.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.methods import cycles, shares
from benchmarks.quality.methods.cycles import Form
from benchmarks.quality.methods.gradient import adam, adam_settings
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    log_uniform,
    one_of,
    sample,
    scale,
)
from benchmarks.quality.methods.presets import (
    decaying,
    far_to_near,
    global_then_base_settings,
    metric_settings,
    slope,
)
from benchmarks.quality.problem import Batch, Objective, Params, Problem
from egd_optax import recombine

# The standard deviation that one draw gives to the logarithm of a learning rate.
SPREAD = 0.5
Options = Callable[[Rates, Static, int], dict[str, Any]]


class WithRate(NamedTuple):
    """Parameters, and a number whose noise makes the learning rate of a member log-normal.

    Attributes:
        params: of the problem.
        rate: `[]`; noise moves it in units of `sigma`. The child's is the weighted mean.
    """

    params: Params
    rate: jax.Array


def is_global(problem: Problem) -> bool:
    """Whether sigma is in units of the initial parameters, and the base ends alone."""
    return problem.kind == "global"


def learn(
    problem: Problem,
    objective: Objective,
    rates: Rates,
    static: Static,
    data: Batch,
    *,
    unit: float,
) -> Callable[[Params, jax.Array, jax.Array], Params]:
    """Steps of Adam from where a member was drawn, each on another batch."""

    def refine(params: Params, key: jax.Array, member: jax.Array) -> Params:
        del member
        by: jax.typing.ArrayLike = 1.0
        if isinstance(params, WithRate):
            by = jnp.exp(SPREAD * (params.rate - _start(problem)) / rates["sigma"])
        optimizer = optax.adam(unit * rates["rate"] * by)

        def step(at: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, state = carry
            batch = sample(data, jax.random.fold_in(key, at), problem.batch_size)
            updates, state = optimizer.update(jax.grad(objective)(params, batch), state)
            return optax.apply_updates(params, updates), state

        return lax.fori_loop(0, static["steps"], step, (params, optimizer.init(params)))[0]

    return refine


def settings_of_steps(rng: np.random.Generator, *steps: int) -> Settings:
    """The learning rate of members, in units of the initial parameters on landscapes."""
    return {"rate": log_uniform(rng, 3e-4, 0.1), "steps": one_of(rng, *steps)}


def elites_settings(rng: np.random.Generator, *, far: bool, learning: bool = True) -> Settings:
    """The learning rate of the base, sigma, and how much is spent on cycles."""
    return {
        **adam_settings(rng),
        "sigma": log_uniform(rng, 0.02, 2.0) if far else log_uniform(rng, 0.01, 0.3),
        "population": one_of(rng, 8, 32),
        "interval": one_of(rng, 1, 10) if far else one_of(rng, 10, 100),
        "samples": 64,
        "generations": 1,
        "polish": 5,
        "accept": "best",
        **(settings_of_steps(rng, 1, 8) if learning else {"steps": 0}),
    }


def ranks_settings(rng: np.random.Generator, *, far: bool) -> Settings:
    """Those of a preset, whose members are fewer or cycles rarer, for each of them costs more."""
    if far:
        settings = global_then_base_settings(rng)
    else:
        settings = {**metric_settings(rng), "decay": True}
        settings |= {"population": one_of(rng, 16, 64), "interval": one_of(rng, 5, 25)}
    return {**settings, **settings_of_steps(rng, 1, 4)}


def elites(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """The mean of the best quarter, with noise that decays."""
    return {
        "sigma": decaying(rates["sigma"], total),
        "recombine": recombine.mean(elite_fraction=0.25),
        "accept": cycles.rule_of(static),
    }


def plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    options: Options,
    has_rate: bool = False,
    pairs: bool = False,
) -> Plan:
    """Cycles whose members learn, around what a user would descend on."""
    unit = scale(problem) if is_global(problem) else 1.0
    form = Form(
        adam,
        options,
        antithetic=pairs,
        absolute=is_global(problem),
        straight_through=problem.straight_through is not None,
        learn=functools.partial(learn, unit=unit) if static["steps"] else None,
    )
    if not has_rate:
        return cycles.plan(problem, static, budget, form=form)
    found = cycles.plan(_with_rate(problem), static, budget, form=form)
    return found._replace(train=lambda *args: found.train(*args).params)


def _with_rate(problem: Problem) -> Problem:
    """The same problem, whose parameters have a learning rate beside them."""

    def of_both(objective: Objective | None) -> Any:
        return objective and (lambda both, batch: objective(both.params, batch))

    return problem._replace(
        init=lambda key: WithRate(problem.init(key), _start(problem)),
        loss=of_both(problem.loss),
        fitness=of_both(problem.fitness),
        straight_through=of_both(problem.straight_through),
    )


def _start(problem: Problem) -> jax.Array:
    """The first `rate`, whose noise then is `sigma`, be that relative or not."""
    return jnp.zeros([]) if is_global(problem) else jnp.ones([])


def _with_control(
    name: str,
    settings: Callable[..., Settings],
    options: dict[bool, Options],
    **fixed: bool,
) -> Iterator[Method]:
    """A method, and the same with random ranks; for landscapes, and for all others."""
    for far, own in options.items():
        method = Method(
            f"global_{name}" if far else name,
            functools.partial(settings, far=far),
            functools.partial(plan, options=own, **fixed),
            lambda problem, far=far: is_global(problem) == far,
        )
        random = functools.partial(plan, options=shares.with_random_ranks(own), **fixed)
        yield from (method, shares.control_of(method, random))


_ELITES = {True: elites, False: elites}
METHODS = (
    *_with_control("elites", functools.partial(elites_settings, learning=False), _ELITES),
    *_with_control("learning_elites", elites_settings, _ELITES),
    *_with_control("learning_elites_with_rates", elites_settings, _ELITES, has_rate=True),
    *_with_control("learning_slope", ranks_settings, {True: far_to_near, False: slope}, pairs=True),
)
