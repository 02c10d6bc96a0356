"""The tables of the results, as `benchmarks.table` writes them into the README."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.bbob.functions import FUNCTIONS, GROUPS, MULTIMODAL
from benchmarks.bbob.methods import CONTROL, OURS
from benchmarks.bbob.seen import TARGETS

RIVAL = "L-BFGS with restarts"
STRATEGIES = ("CMA-ES, small", "CMA-ES, large", "Sep-CMA-ES", "SNES")
Table = tuple[str, list[str], list[list[str]]]


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
    """All tables."""
    record = measure.load("bbob")
    runs = len(record["instances"]) * record["seeds"]
    found = {row["method"]: found_by(row, runs, record["seeds"]) for row in record["rows"]}
    with_gradients = {name: one for name, one in found.items() if name not in STRATEGIES}
    without = {name: found[name] for name in STRATEGIES}
    return [
        shares(found),
        over_time(found, record["read_at"]),
        beside(found),
        by_function("Methods with gradients", with_gradients),
        by_function("Strategies of evosax", without),
    ]


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
        ends = one.shares[:, -1]
        whole = f"{ends.mean():.3f} ({instances.min():.3f} to {instances.max():.3f})"
        groups = [
            f"{ends[group.start - 1 : group.stop - 1].mean():.3f}" for group in GROUPS.values()
        ]
        body.append([name, whole, *groups, one.settings])
    header = ["method", "all 24 (lowest to highest instance)", *GROUPS, "settings"]
    return "Share of the targets at the end of the budget", header, body


def over_time(found: dict[str, Found], read_at: list[int]) -> Table:
    """The share of the targets within parts of the budget."""
    body = [
        [name, *(f"{share:.3f}" for share in one.shares.mean(0))] for name, one in found.items()
    ]
    header = ["method", *(f"{read} d" for read in read_at)]
    return "Share of the targets within so many evaluations, all 24 functions", header, body


def by_function(kind: str, found: dict[str, Found]) -> Table:
    """The share of the targets at the end, and the median of the best values."""
    body = []
    for function in FUNCTIONS:
        at = function - 1
        cells = [f"{one.shares[at, -1]:.2f}; {_value(one.values[at, 1])}" for one in found.values()]
        body.append([named(function), *cells])
    title = f"{kind}, each function: share of the targets at the end; median of the best values"
    return title, ["function", *found], body


def beside(found: dict[str, Found]) -> Table:
    """Cycles around L-BFGS beside L-BFGS with restarts, where minima are many."""
    rows = ours, rival, _ = [found[name] for name in (OURS, RIVAL, CONTROL)]
    gains = ours.by_instance - rival.by_instance
    body = [
        [named(at), *(_quartiles(one, at) for one in rows), _counts(gains[at - 1])]
        for at in MULTIMODAL
    ]
    means = [f"{one.shares[:, -1].mean():.3f}" for one in rows]
    body.append(["all 24", *means, _counts(gains.mean(0))])
    header = ["function", OURS, RIVAL, CONTROL, "instances better / same / worse"]
    return "Many minima: share of the targets at the end (quartiles of the runs)", header, body


def named(function: int) -> str:
    """The number and the name of a function."""
    return f"{function} {FUNCTIONS[function].__name__.replace('_', ' ')}"


def _counts(gains: np.ndarray) -> str:
    """On how many instances the share is larger, the same and smaller; coloured if on most."""
    counts = [int(np.sum(found)) for found in (gains > 0, gains == 0, gains < 0)]
    most = [count > gains.size / 2 for count in counts]
    outcome = "win" if most[0] else "loss" if most[2] else "tie"
    return f'<span class="{outcome}">{" / ".join(str(count) for count in counts)}</span>'


def _quartiles(one: Found, function: int) -> str:
    low, _, high = one.by_run[function - 1]
    return f"{one.shares[function - 1, -1]:.3f} ({low:.2f} to {high:.2f})"


def _value(value: float) -> str:
    return "0" if value <= 1e-12 else f"{value:.1e}"
