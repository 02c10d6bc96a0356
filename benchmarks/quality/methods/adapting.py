"""Global search whose noise adapts in other ways: an ablation of the preset."""

import functools
from typing import Any

import numpy as np
import optax

from benchmarks.quality.methods import cycles
from benchmarks.quality.methods.cycles import Form
from benchmarks.quality.methods.gradient import adam
from benchmarks.quality.methods.method import Rates, Settings, Static
from benchmarks.quality.methods.presets import GLOBAL_THEN_BASE, global_then_base_settings
from egd_optax import accept, noise, recombine, sigma


def by_success(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Sigma adapts to the share of children that are better, and these alone are taken."""
    return {
        **_ground(rates),
        "sigma": sigma.one_fifth(lambda cycle: rates["sigma"]),
        "accept": accept.improved(),
    }


def separable(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Each parameter has a standard deviation that adapts."""
    return {
        **_ground(rates),
        "sigma": rates["sigma"],
        "noise": noise.separable(relative=False),
    }


def _ground(rates: Rates) -> dict[str, Any]:
    return {
        "recombine": recombine.centered_rank(),
        "es_optimizer": optax.sgd(rates["recombine_step"]),
        "accept": accept.always(),
    }


def success_settings(rng: np.random.Generator) -> Settings:
    """Those of the others, with a rule that compares."""
    return {**global_then_base_settings(rng), "accept": "improved"}


METHODS = tuple(
    GLOBAL_THEN_BASE._replace(
        name=f"global_{name}_then_base",
        settings=settings,
        plan=functools.partial(
            cycles.plan, form=Form(adam, options, antithetic=True, absolute=True)
        ),
    )
    for name, options, settings in (
        ("one_fifth", by_success, success_settings),
        ("separable", separable, global_then_base_settings),
    )
)
