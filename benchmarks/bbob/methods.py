"""The methods by name, with the settings that they are tuned over."""

import itertools
from typing import NamedTuple

from benchmarks.bbob import cycles, descent, strategies
from benchmarks.bbob.method import Numbers, Run
from benchmarks.bbob.strategies import LARGE, SMALL


class Method(NamedTuple):
    """A method.

    Attributes:
        runs: the programs that it is tuned over, by what distinguishes them.
        grid: the numbers that each of them is tuned over.
    """

    runs: dict[str, Run]
    grid: list[Numbers]


def product(**values: tuple[float, ...]) -> list[Numbers]:
    """All combinations of numbers."""
    combined = itertools.product(*values.values())
    return [dict(zip(values, numbers, strict=True)) for numbers in combined]


SIGMAS = (1.0, 2.0, 3.0)
# With a negative tolerance L-BFGS never starts again.
ONCE, AGAIN = (-1.0,), (0.0, 1e-14, 1e-12, 1e-11, 1e-10, 1e-9, 1e-6)
OURS, CONTROL = "cycles around L-BFGS", "random ranks around L-BFGS"


def evosax(name: str, population: int, sigmas: tuple[float, ...] = SIGMAS) -> Method:
    """A strategy of evosax."""
    runs = {f"population {population}": strategies.strategy(name, population)}
    return Method(runs, product(sigma=sigmas))


def around_lbfgs(random_ranks: bool = False) -> Method:
    """Cycles around L-BFGS."""
    runs = {
        f"{generations} generations of {population}": cycles.around_lbfgs(
            population, generations, random_ranks
        )
        for population, generations in ((30, 200), (60, 100))
    }
    return Method(runs, product(sigma=SIGMAS, tolerance=(1e-14, 1e-11, 1e-9)))


# Where the best setting of a baseline was at the edge of its grid, the grid was made wider there.
METHODS = {
    "Adam": Method(
        {"": descent.adam}, product(learning_rate=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
    ),
    "L-BFGS": Method({"": descent.lbfgs}, product(tolerance=ONCE)),
    "L-BFGS with restarts": Method({"": descent.lbfgs}, product(tolerance=AGAIN)),
    "CMA-ES, small": evosax("CMA_ES", SMALL, (*SIGMAS, 5.0)),
    "CMA-ES, large": evosax("CMA_ES", LARGE, (0.5, *SIGMAS)),
    "Sep-CMA-ES": evosax("Sep_CMA_ES", SMALL, (*SIGMAS, 5.0)),
    "SNES": evosax("SNES", SMALL, (*SIGMAS, 5.0)),
    "cycles around Adam": Method(
        {"90% on cycles": cycles.around_adam(0.9)},
        product(sigma=SIGMAS, learning_rate=(0.03, 0.1))
        + product(sigma=(3.0,), learning_rate=(0.3, 1.0)),
    ),
    OURS: around_lbfgs(),
    CONTROL: around_lbfgs(random_ranks=True),
}
# The control is tuned no further: it has the settings of what it controls.
SETTINGS_OF = {CONTROL: OURS}
