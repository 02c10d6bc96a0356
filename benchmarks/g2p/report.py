"""The tables of the results, as `benchmarks.table` writes them into the documentation."""

from typing import Any

import numpy as np

from benchmarks import cells, measure
from benchmarks.cells import Table
from benchmarks.g2p.arms import ARMS, RANDOM, REFERENCE
from benchmarks.g2p.record import best
from benchmarks.quality import report

Row = dict[str, Any]
HEADER = [
    "way",
    "median (quartiles)",
    f"against {REFERENCE}: better / same / worse; difference (95 %)",
    "against random ranks",
]
# Settings that are the same in all trials, or follow from the others.
FIXED = ("recombine_step", "samples", "noise", "decay", "accept", "population")


def tables() -> list[Table]:
    """All tables."""
    record = measure.load("g2p")
    formats = list(dict.fromkeys(row["format"] for row in record["rows"]))
    found = [scores(form, record["rows"]) for form in formats]
    return [untouched(record), *found, times(), trials(measure.load("g2p_tuning")["rows"])]


def untouched(record: Row) -> Table:
    """The word error without training."""
    body = [[row["format"], f"{row['score']:.3f}"] for row in record["untouched"]]
    return "Rounded and not trained, word error", ["weights", "word error"], body


def scores(form: str, rows: list[Row]) -> Table:
    """What each way reached in a format, beside the reference and its control."""
    found = {row["arm"]: row["scores"] for row in rows if row["format"] == form}
    reference = found[REFERENCE]
    body = []
    for name in (name for name in ARMS if name in found):
        against = "" if name == REFERENCE else comparison(found[name], reference)
        control = found.get(name + RANDOM)
        shown = [against, comparison(found[name], control) if control else ""]
        body.append([name, spread(found[name]), *shown])
    return f"{form[0].upper()}{form[1:]}: word error after {len(reference)} runs", HEADER, body


def trials(rows: list[Row]) -> Table:
    """All settings that were tried."""
    chosen = [
        best([row for row in rows if _tried(row) == tried])
        for tried in dict.fromkeys(map(_tried, rows))
    ]
    body = []
    for row in rows:
        score = f"{row['validation']:.3f}"
        shown = f"**{score}**" if row in chosen else score
        body.append([row["arm"], row["format"], settings(row["settings"]), shown])
    header = ["way", "weights", "settings", "word error"]
    return "Settings that were tried, word error on validation words", header, body


def times() -> Table:
    """What decoding and a gradient take."""
    body = [[row["pass"], cells.ratio(row)] for row in measure.load("g2p_time")["rows"]]
    return "CPU time over that of the cross-entropy", ["pass", "time"], body


def spread(values: list[float]) -> str:
    """The median and the quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return cells.spread(median, low, high, digits=3)


def comparison(ours: list[float], others: list[float]) -> str:
    """On how many seeds the error is lower, the same and higher, and by how much."""
    return report.comparison(ours, others, "+.3f")


def settings(found: Row) -> str:
    """Those that were tried, in words."""
    shown = {name: value for name, value in found.items() if name not in FIXED}
    return ", ".join(f"{name} {value:g}" for name, value in shown.items()).replace("_", " ")


def _tried(row: Row) -> tuple[str, str]:
    return row["format"], row["arm"]
