"""Members that learn before they are scored, beside the same cycles whose members do not."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.quality import names, report, timing
from benchmarks.quality.methods import shares
from benchmarks.quality.methods.learning import is_global
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

HEADER = [
    "problem",
    "reference",
    "mean of elites: drawn; learned; learned at rates of their own",
    "by ranks of all: drawn; learned",
]


class Cell(NamedTuple):
    """The scores of a method over the seeds, and those with random ranks."""

    scores: list[float]
    random: list[float]

    def shown(self, others: Iterable[list[float]]) -> str:
        """Medians, those of random ranks in brackets; bold if better than others and these."""
        against = [report.outcome(report.compared(self.scores, one)) for one in others]
        text = f"{float(np.median(self.scores)):.3g}"
        chance = report.outcome(report.compared(self.scores, self.random))
        text = f"**{text}**" if {*against, chance} == {"win"} else text
        return f"{text} ({float(np.median(self.random)):.3g})"


def rows(problems: Iterable[Problem], store: Store) -> list[list[str]]:
    """A row a problem.

    Bold is what learning improves by more than noise over the reference, over the same cycles
    without it, and over random ranks.
    """
    found = (_row(problem, store) for problem in problems)
    return [row for row in found if row]


def _row(problem: Problem, store: Store) -> list[str]:
    base = timing.baseline(problem)
    prefix = "global_" if is_global(problem) else ""
    preset = "global_then_base" if is_global(problem) else shares.SHIPPED[base]
    by_elites = ["elites", "learning_elites", "learning_elites_with_rates"]
    groups = [
        _cells(problem, store, [prefix + name for name in by_elites]),
        _cells(problem, store, [preset, f"{prefix}learning_slope"]),
    ]
    if not all(groups):
        return []
    reference = report.scores(store.load(problem.name, base))
    cells = []
    for drawn, *learned in groups:
        shown = [one.shown([reference, drawn.scores]) for one in learned]
        cells.append("; ".join([drawn.shown([reference]), *shown]))
    return [names.problem(problem.name), f"{float(np.median(reference)):.3g}", *cells]


def _cells(problem: Problem, store: Store, methods: list[str]) -> list[Cell]:
    """The methods with their controls; none if one of them was not run."""
    records = [
        [store.load(problem.name, name) for name in (method, method + shares.RANDOM)]
        for method in methods
    ]
    if not all(one.get("scores") for pair in records for one in pair):
        return []
    return [Cell(*map(report.scores, pair)) for pair in records]
