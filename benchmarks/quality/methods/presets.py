"""Methods that evolve: the sketch, its guarded successor, final bursts, and the presets."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.methods import cycles
from benchmarks.quality.methods.cycles import Form
from benchmarks.quality.methods.gradient import adam, adam_settings, sgd, sgd_settings
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    count,
    log_uniform,
    one_of,
)
from benchmarks.quality.methods.straight_through import has_stand_in
from egd_optax import accept, recombine
from egd_optax.sigma import path_length

# Samples of the batch that the safe preset accepts on.
GUARD_SAMPLES = 256
# What sigma decays to, over what it starts with.
FLOOR = 0.01


def slope(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments that follow the slope of the fitness, smoothed over the noise.

    The rate of the step is named `recombine_step` in settings, as in the records.
    """
    sigma = rates["sigma"]
    return {
        "sigma": decaying(sigma, total) if static["decay"] else sigma,
        "recombine": recombine.centered_rank(),
        "es_optimizer": optax.sgd(rates["recombine_step"]),
        "accept": cycles.rule_of(static),
    }


def sketch(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """The mean of the best two of eight, taken always, and the optimizer starts anew."""
    return {
        "sigma": lambda cycle: rates["sigma"] * jnp.power(0.98, cycle),
        "recombine": recombine.mean(elite_fraction=0.25),
        "accept": accept.always(),
        "reset_base": True,
    }


def guarded(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """The best of parent, elites and their mean."""
    return {
        "sigma": rates["sigma"],
        "recombine": recombine.mean(elite_fraction=0.25),
        "accept": accept.best(),
    }


def decaying(sigma: jax.typing.ArrayLike, total: int) -> optax.Schedule:
    """A sigma that shrinks along a cosine over the cycles of a run."""
    return optax.cosine_decay_schedule(sigma, max(total, 1), FLOOR)


def far_to_near(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments that look around widely at first and closely in the end."""
    return {
        **slope(rates, static, total),
        "sigma": optax.exponential_decay(rates["sigma"], max(total, 1), FLOOR),
    }


def metric_settings(rng: np.random.Generator) -> Settings:
    """A cheap generation, often."""
    return {
        **adam_settings(rng),
        "sigma": log_uniform(rng, 0.02, 0.2),
        "recombine_step": log_uniform(rng, 0.3, 3.0),
        "population": 64,
        "samples": 16,
        "interval": 5,
        "generations": 1,
        "noise": "low_rank",
        "decay": one_of(rng, False, True),
        "accept": "always",
    }


def global_settings(rng: np.random.Generator) -> Settings:
    """Many generations; sigma in units of the initial parameters."""
    return {
        **adam_settings(rng),
        "sigma": log_uniform(rng, 0.2, 2.0),
        "recombine_step": log_uniform(rng, 0.02, 1.0),
        "population": one_of(rng, 16, 64),
        "samples": 16,
        "interval": 1,
        "generations": 10,
        "noise": "full_rank",
        "decay": False,
        "accept": "always",
    }


def adapting(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments that look around as far as the path of the parent tells."""
    return {
        **slope(rates, static, total),
        "sigma": path_length(lambda cycle: rates["sigma"]),
    }


def global_then_base_settings(rng: np.random.Generator) -> Settings:
    """The same; the base ends alone, for some percent of the budget."""
    return {**global_settings(rng), "polish": 5}


def adaptive_settings(rng: np.random.Generator) -> Settings:
    """The same with the population of the preset: of few members a path is mostly noise."""
    return {**global_then_base_settings(rng), "population": 64}


def safe_settings(rng: np.random.Generator) -> Settings:
    """A generation, rarely."""
    return {
        **adam_settings(rng),
        "sigma": log_uniform(rng, 0.003, 0.1),
        "recombine_step": log_uniform(rng, 0.1, 3.0),
        "population": 8,
        "samples": 32,
        "interval": 400,
        "generations": 1,
        "noise": "full_rank",
        "decay": False,
        "accept": "improved",
    }


def burst_settings(
    base: Callable[[np.random.Generator], Settings], rng: np.random.Generator
) -> Settings:
    """Generations enough for a quarter of the budget."""
    return {
        **base(rng),
        "sigma": log_uniform(rng, 0.01, 0.3),
        "recombine_step": log_uniform(rng, 0.1, 3.0),
        "population": one_of(rng, 16, 32, 64),
        "samples": one_of(rng, 8, 16, 32),
        "noise": "full_rank",
        "decay": False,
        "accept": "always",
    }


def sketch_settings(rng: np.random.Generator) -> Settings:
    """All but the learning rate as in the sketch."""
    return {
        **sgd_settings(rng),
        "sigma": 0.02,
        "population": 8,
        "interval": 200,
        "generations": 1,
        "accept": "always",
    }


def guarded_settings(rng: np.random.Generator) -> Settings:
    """What the demo fixed, but for the learning rate and sigma."""
    return {
        **sgd_settings(rng),
        "sigma": log_uniform(rng, 0.01, 0.3),
        "population": 16,
        "samples": 32,
        "interval": 50,
        "generations": 1,
    }


def _plan(*args: Any, **form: Any) -> Callable[..., Plan]:
    return functools.partial(cycles.plan, form=Form(*args, **form))


METRIC = Method(
    "metric",
    metric_settings,
    _plan(adam, slope, antithetic=True),
    lambda problem: count(problem.train) > 1,
)

GLOBAL = Method(
    "global_",
    global_settings,
    _plan(adam, far_to_near, antithetic=True, absolute=True),
    lambda problem: problem.kind == "global",
)
GLOBAL_THEN_BASE = GLOBAL._replace(name="global_then_base", settings=global_then_base_settings)
GLOBAL_ADAPTIVE = GLOBAL._replace(
    name="global_adaptive",
    settings=adaptive_settings,
    plan=_plan(adam, adapting, antithetic=True, absolute=True),
)

# The presets of this library.
OURS = (
    METRIC,
    METRIC._replace(
        name="metric_on_straight_through",
        plan=_plan(adam, slope, antithetic=True, straight_through=True),
        applies=has_stand_in,
    ),
    GLOBAL,
    GLOBAL_THEN_BASE,
    GLOBAL_ADAPTIVE,
    Method("safe", safe_settings, _plan(adam, slope, antithetic=True, guard=GUARD_SAMPLES)),
)
# Those whose cycles go on to the last step.
TO_THE_END = tuple(method for method in OURS if method not in (GLOBAL_THEN_BASE, GLOBAL_ADAPTIVE))

METHODS = (
    Method("sketch", sketch_settings, _plan(sgd, sketch, training_batch=True)),
    Method("elite_mean_guard", guarded_settings, _plan(sgd, guarded)),
    *(
        Method(
            f"{name}_burst",
            functools.partial(burst_settings, settings),
            functools.partial(
                cycles.plan, form=Form(base, slope, antithetic=True), schedule=cycles.burst
            ),
        )
        for name, base, settings in (("sgd", sgd, sgd_settings), ("adam", adam, adam_settings))
    ),
    *OURS,
)
