"""Runs three times as long with the settings of the short run: do they carry over?

As they are, and in two ways that keep small what cycles stir up in a longer run: noise smaller by
the square root of three, so that as much of it adds up, or as many cycles, farther apart.
"""

from collections.abc import Callable
import math

from benchmarks.quality.methods import gradient, presets, straight_through
from benchmarks.quality.methods.method import Method, Settings

SUFFIX = "_carried_3x"
TIMES = 3


def less_noise(settings: Settings) -> Settings:
    """Noise whose variance, added up over all cycles, is that of the short run."""
    return {**settings, "sigma": settings["sigma"] / math.sqrt(TIMES)}


def rarer(settings: Settings) -> Settings:
    """Cycles as many as in the short run."""
    return {**settings, "interval": TIMES * settings["interval"]}


def as_they_are(settings: Settings) -> Settings:
    """The settings of the short run."""
    return settings


def _carried(method: Method, change: Callable[[Settings], Settings] = as_they_are) -> Method:
    how = "" if change is as_they_are else f"_{change.__name__}"
    return method._replace(
        name=f"{method.name}{how}{SUFFIX}",
        settings_of=method.name,
        changed=change,
        budget=float(TIMES),
    )


_ADAM = next(method for method in gradient.METHODS if method.name == "adam")
_METRIC = tuple(method for method in presets.OURS if method.name.startswith("metric"))

METHODS = (
    *map(_carried, (_ADAM, straight_through.STRAIGHT_THROUGH, *presets.OURS)),
    *(_carried(method, change) for method in _METRIC for change in (less_noise, rarer)),
)
