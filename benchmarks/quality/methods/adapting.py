"""Global search whose noise adapts in other ways: an ablation of the preset."""

import functools
from typing import Any

import numpy as np

from benchmarks.quality.methods import cycles
from benchmarks.quality.methods.cycles import Form
from benchmarks.quality.methods.gradient import adam
from benchmarks.quality.methods.method import Rates, Settings, Static
from benchmarks.quality.methods.presets import GLOBAL_THEN_BASE, global_then_base_settings, slope
from egd_optax import noise, sigma


def by_success(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Sigma adapts to the share of children that are better, and these alone are taken."""
    return {
        **slope(rates, static, total),
        "sigma": sigma.one_fifth(lambda cycle: rates["sigma"]),
    }


def separable(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Each parameter has a standard deviation that adapts."""
    return {
        **slope(rates, static, total),
        "noise": noise.separable(relative=False),
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
