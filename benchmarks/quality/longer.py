"""Runs of three and ten times the compute, whose cycles keep their share of it."""

from collections.abc import Iterable

import numpy as np

from benchmarks.quality import names, report, timing
from benchmarks.quality.learning import Cell
from benchmarks.quality.methods import carried, shares
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

HEADER = ["problem", "reference", "light", "three tenths"]
SHARED = ("light", "share_30")
ENDINGS = ("", *map(carried.suffix, carried.TIMES))


def rows(problems: Iterable[Problem], store: Store) -> list[list[str]]:
    """A row for each problem that has longer runs; medians by length, the shortest first.

    Bold is what is better than the reference of this length and than random ranks by more than
    noise.
    """
    found = (_row(problem, store) for problem in problems)
    return [row for row in found if row]


def _row(problem: Problem, store: Store) -> list[str]:
    base = timing.baseline(problem)
    references, cells = [], {name: [] for name in SHARED}
    for ending in ENDINGS:
        methods = [base, *(name + control for name in SHARED for control in ("", shares.RANDOM))]
        records = [store.load(problem.name, method + ending) for method in methods]
        if not all(record.get("scores") for record in records):
            break
        reference, *others = map(report.scores, records)
        references.append(f"{float(np.median(reference)):.3g}")
        for at, name in enumerate(SHARED):
            cells[name].append(Cell(*others[2 * at : 2 * at + 2]).shown([reference]))
    if len(references) < 2:
        return []
    return [names.problem(problem.name), *map("; ".join, (references, *cells.values()))]
