"""The tables of the results, as `benchmarks.table` writes them into their page."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.bbob.functions import FUNCTIONS, GROUPS, MULTIMODAL
from benchmarks.bbob.methods import CONTROL, OURS
from benchmarks.bbob.seen import TARGETS
from benchmarks.cells import Table, beside

RIVAL = "L-BFGS with restarts"
# The functions that are named after somebody.
NAMES = {
    3: "Rastrigin",
    4: "Büche-Rastrigin",
    8: "Rosenbrock",
    9: "Rosenbrock, rotated",
    15: "Rastrigin, rotated",
    16: "Weierstrass",
    17: "Schaffers",
    18: "Schaffers, ill-conditioned",
    19: "Griewank-Rosenbrock",
    20: "Schwefel",
    21: "Gallagher, 101 peaks",
    22: "Gallagher, 21 peaks",
    23: "Katsuura",
    24: "Lunacek",
}
# The methods that are shown together for each function.
TOGETHER = {
    "Adam, cycles around it, and L-BFGS": ("Adam", "cycles around Adam", "L-BFGS"),
    "L-BFGS with restarts, with cycles, and with random ranks": (RIVAL, OURS, CONTROL),
    "CMA-ES": ("CMA-ES, small", "CMA-ES, large"),
    "Strategies that separate": ("Sep-CMA-ES", "SNES"),
}
# The columns of the groups of functions.
TOGETHER_GROUPS = {
    "separable; moderate; high condition": tuple(GROUPS)[:3],
    "many minima: clear; weak structure": tuple(GROUPS)[3:],
}


class Found(NamedTuple):
    """What a method found, as shares of the targets.

    Attributes:
        shares: `[24, len(READ_AT)]`, over all runs.
        by_instance: `[24, instances]`, at the end of the budget.
        by_run: `[24, 3]`, the quartiles over the runs at the end.
        values: `[24, 3]`, the quartiles of the best values.
        settings: in words.
    """

    shares: np.ndarray
    by_instance: np.ndarray
    by_run: np.ndarray
    values: np.ndarray
    settings: str


def tables() -> list[Table]:
    """All tables of results."""
    record = measure.load("bbob")
    found = _found(record)
    return [
        shares(found),
        over_time(found, record["read_at"]),
        against_restarts(found),
        *(
            by_function(what, {name: found[name] for name in names})
            for what, names in TOGETHER.items()
        ),
    ]


def settings() -> Table:
    """The settings of the methods that have any."""
    found = _found(measure.load("bbob"))
    body = [[name, one.settings] for name, one in found.items() if one.settings]
    return "The best settings", ["method", "settings"], body


def _found(record: dict[str, Any]) -> dict[str, Found]:
    runs = len(record["instances"]) * record["seeds"]
    return {row["method"]: found_by(row, runs, record["seeds"]) for row in record["rows"]}


def found_by(row: dict[str, Any], runs: int, seeds: int) -> Found:
    """The shares of a row of the results."""
    written = [row["kind"]] if row["kind"] else []
    written += [f"{what} {number:g}" for what, number in row["numbers"].items() if number >= 0]
    return Found(
        np.array(row["hits"]) / (runs * TARGETS.size),
        np.array(row["by_instance"]) / (seeds * TARGETS.size),
        np.array(row["by_run"]) / TARGETS.size,
        np.array(row["values"]),
        ", ".join(written).replace("_", " "),
    )


def shares(found: dict[str, Found]) -> Table:
    """The share of the targets at the end, over all functions and those of a group."""
    body = []
    for name, one in found.items():
        instances = one.by_instance.mean(0)
        whole = f"{one.shares[:, -1].mean():.3f} ({instances.min():.3f} to {instances.max():.3f})"
        groups = [
            beside(*(f"{_mean(one, GROUPS[group]):.3f}" for group in groups))
            for groups in TOGETHER_GROUPS.values()
        ]
        body.append([name, whole, *groups])
    header = ["method", "all 24 (lowest to highest instance)", *TOGETHER_GROUPS]
    return "Share of the targets at the end of the budget", header, body


def over_time(found: dict[str, Found], read_at: list[int]) -> Table:
    """The share of the targets within parts of the budget."""
    *early, last = [f"{read} d" for read in read_at]
    header = ["method", beside(*early[:2]), beside(*early[2:]), last]
    body = []
    for name, one in found.items():
        *before, end = [f"{share:.3f}" for share in one.shares.mean(0)]
        body.append([name, beside(*before[:2]), beside(*before[2:]), end])
    return "Share of the targets within so many evaluations, all 24 functions", header, body


def by_function(kind: str, found: dict[str, Found]) -> Table:
    """The share of the targets at the end, and the median of the best values."""
    body = []
    for function in FUNCTIONS:
        at = function - 1
        cells = [f"{one.shares[at, -1]:.2f}; {_value(one.values[at, 1])}" for one in found.values()]
        body.append([named(function), *cells])
    title = f"{kind}: share of the targets at the end; median of the best values"
    return title, ["function", *found], body


def against_restarts(found: dict[str, Found]) -> Table:
    """Cycles around L-BFGS beside L-BFGS with restarts, where minima are many."""
    rows = ours, rival, _ = [found[name] for name in (OURS, RIVAL, CONTROL)]
    gains = ours.by_instance - rival.by_instance
    body = [
        [named(at), *_judged([_quartiles(one, at) for one in rows], gains[at - 1])]
        for at in MULTIMODAL
    ]
    means = [f"{one.shares[:, -1].mean():.3f}" for one in rows]
    body.append(["all 24", *_judged(means, gains.mean(0))])
    header = ["function", f"{OURS}; instances better / same / worse", RIVAL, CONTROL]
    return "Many minima: share of the targets at the end (quartiles of the runs)", header, body


def named(function: int) -> str:
    """The number and the name of a function."""
    name = NAMES.get(function) or FUNCTIONS[function].__name__.replace("_", " ")
    return f"{function} {name}"


def _judged(cells: list[str], gains: np.ndarray) -> list[str]:
    """Cells of ours, of the rival and of the control.

    That of the winner on most instances is bold. Ours has on how many the share is larger, the
    same and smaller.
    """
    counts = [int(np.sum(found)) for found in (gains > 0, gains == 0, gains < 0)]
    most = [count > gains.size / 2 for count in counts]
    outcome = "win" if most[0] else "loss" if most[2] else "tie"
    shown = list(cells)
    if outcome != "tie":
        at = ("win", "loss").index(outcome)
        share, *rest = shown[at].split(" ", 1)
        shown[at] = " ".join([f"**{share}**", *rest])
    counted = " / ".join(str(count) for count in counts)
    shown[0] = f'{shown[0]}; <span class="{outcome}">{counted}</span>'
    return shown


def _mean(one: Found, group: range) -> float:
    """The share of the targets at the end, over the functions of a group."""
    return float(one.shares[group.start - 1 : group.stop - 1, -1].mean())


def _quartiles(one: Found, function: int) -> str:
    low, _, high = one.by_run[function - 1]
    return f"{one.shares[function - 1, -1]:.3f} ({low:.2f} to {high:.2f})"


def _value(value: float) -> str:
    """Two digits."""
    return "0" if value <= 1e-12 else f"{float(f'{value:.2g}'):g}"
