"""How often cycles run, from the share of the compute that they get."""

import math
from typing import Any, NamedTuple

from egd_optax._checks import check_number, check_size

# A gradient costs a forward and a backward pass, which is as much as two forward passes.
FORWARDS_PER_GRADIENT = 3


class Timetable(NamedTuple):
    """When cycles run.

    Attributes:
        evolve_every: steps between cycles.
        window: as an argument of `evolve`.
        cycles: in the window.
    """

    evolve_every: int
    window: tuple[int, int] | None
    cycles: int


def interval(
    share: float, part: float, members: int, samples: float, evolve_every: int | None
) -> int:
    """`evolve_every` if it is given, else what a share asks for; see `interval_of`."""
    if evolve_every is not None:
        return check_size("evolve_every", evolve_every)
    check_number("samples", samples, zero=False)
    return interval_of(check_share(share), part, members, samples)


def interval_of(share: float, part: float, members: int, samples: float) -> int:
    """The steps between cycles that take a share of the compute of a run.

    Args:
        share: of the compute of the whole run, between 0 and 1.
        part: of the steps on which cycles may run, in (0, 1].
        members: evaluated in a cycle.
        samples: that a member is evaluated on, over those of a gradient step.

    Returns:
        The least interval with which cycles take at most the share.

    Raises:
        ValueError: even a cycle on every step takes less.
    """
    cycle = members * samples / FORWARDS_PER_GRADIENT  # in gradient steps
    exact = round(part * (1 - share) / share * cycle, 6)  # 48.000000000000007 is 48
    if exact < 1:
        most = part * cycle / (1 + part * cycle)
        raise ValueError(
            f"`share` must be at most {most:.2g} here, got {share!r}: a cycle on every step of "
            f"`window`, of {members} members with {samples!r} times the samples of a step, takes "
            "no more. Raise `population_size`."
        )
    return math.ceil(exact)


def timetable(
    steps: int,
    share: float,
    window: tuple[float, float],
    members: int,
    samples: float,
    evolve_every: int | None = None,
) -> Timetable:
    """When cycles run in a run of so many steps; see `interval_of`, and `metric`."""
    steps = check_size("steps", steps)
    first, last = check_part(window)
    evolve_every = interval(share, last - first, members, samples, evolve_every)
    start, stop = round(first * steps), round(last * steps)
    cycles = stop // evolve_every - start // evolve_every
    if not cycles:
        raise ValueError(
            f"`steps` must have a cycle in the window, got {steps}: with `share={share!r}` cycles "
            f"are {evolve_every} steps apart. Raise `share`, or lower `population_size`."
        )
    whole = (first, last) == (0, 1)
    return Timetable(evolve_every, None if whole else (start, stop), cycles)


def check_share(share: Any) -> float:
    """A part of the compute, below one."""
    check_number("share", share, zero=False)
    if share >= 1:
        raise ValueError(
            f"`share` must be below 1, got {share!r}: 0.1 gives cycles a tenth of the compute."
        )
    return float(share)


def check_part(window: Any) -> tuple[float, float]:
    """Two fractions of a run."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(
            f"`window` must be a pair of fractions of the run, got {window!r}: `window=(0, 0.5)` "
            "has cycles in the first half."
        )
    for fraction in window:
        check_number("window", fraction, zero=True)
    first, last = window
    if not first < last <= 1:
        raise ValueError(
            f"`window` must be two rising fractions of the run, from 0 to 1, got {window!r}: "
            "`window=(0, 0.5)` has cycles in the first half."
        )
    return float(first), float(last)
