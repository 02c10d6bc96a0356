"""Longer runs with the settings of the short one: do they carry over?

As they are, and in two ways that keep small what cycles stir up in a longer run: noise smaller by
the square root of the length, so that as much of it adds up, or as many cycles, farther apart.
"""

from collections.abc import Callable
import functools
import math

from benchmarks.quality.methods import (
    devices,
    gradient,
    presets,
    shares,
    straight_through,
    strategies,
)
from benchmarks.quality.methods.method import Method, Settings

# How many times as long.
TIMES = (3, 10)

Change = Callable[[Settings, int], Settings]


def suffix(times: int) -> str:
    """What the names of runs end with that are so many times as long."""
    return f"_carried_{times}x"


def less_noise(settings: Settings, times: int) -> Settings:
    """Noise whose variance, added up over all cycles, is that of the short run."""
    return {**settings, "sigma": settings["sigma"] / math.sqrt(times)}


def rarer(settings: Settings, times: int) -> Settings:
    """Cycles as many as in the short run."""
    return {**settings, "interval": times * settings["interval"]}


def _carried(method: Method, times: int, change: Change | None = None) -> Method:
    how = "" if change is None else f"_{change.__name__}"
    carried = method._replace(
        name=f"{method.name}{how}{suffix(times)}",
        settings_of=(method.name,),
        budget=float(times),
    )
    if change is None:
        return carried
    return carried._replace(changed=functools.partial(change, times=times))


_ADAM = next(method for method in gradient.METHODS if method.name == "adam")
_METRIC = tuple(method for method in presets.OURS if method.name.startswith("metric"))
# Cycles on a share of the compute keep it: the interval follows from the length.
_AS_THEY_ARE = (
    *(_ADAM, straight_through.STRAIGHT_THROUGH, *presets.TO_THE_END),
    *(*shares.LIGHT, *shares.SHARE),
)
# What learns from the device alone in the end; on three times the budget cycles are to be level.
_ON_DEVICES = tuple(
    method._replace(applies=devices.is_device)
    for method in (*devices.LAST_ON_THE_DEVICE, *strategies.METHODS)
)

METHODS = (
    *(_carried(method, times) for times in TIMES for method in _AS_THEY_ARE),
    *(_carried(method, 3) for method in _ON_DEVICES),
    *(
        _carried(method, times, change)
        for times in TIMES
        for method in _METRIC
        for change in (less_noise, rarer)
    ),
)
