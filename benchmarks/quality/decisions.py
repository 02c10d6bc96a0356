"""The table of what decides within a run whether to evolve, beside both arms it decides between."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks import table
from benchmarks.quality import report
from benchmarks.quality.methods.checkpoint import ARMS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "diagnosing.md"
START = "<!-- deciding: made by `python -m benchmarks.quality report` -->\n"
END = "<!-- /deciding -->\n"
WAYS = ("race", "vetoed_race", "vetoed_early_race")
HEADER = [
    "problem",
    "base alone",
    "preset",
    "race at a fifth",
    "veto, then race at a fifth",
    "veto, then race at a tenth",
    "against the base: better / same / worse",
]


def rows(problems: Iterable[Problem], store: Store) -> list[list[str]]:
    """A row for every base of a problem and the preset around it.

    Medians of the score, in brackets over that of the better of the two; the seeds that are counted
    last are those of the last way of deciding.
    """
    return [
        row
        for problem in problems
        for base, preset in ARMS
        for row in _row(problem, base, preset, store)
    ]


def _row(problem: Problem, base: str, preset: str, store: Store) -> list[list[str]]:
    names = [base, preset, *(f"{way}_{preset}" for way in WAYS)]
    loaded = [store.load(problem.name, name) for name in names]
    if not all(record.get("scores") for record in loaded):
        return []
    found = [report.scores(record) for record in loaded]
    medians = [float(np.median(scores)) for scores in found]
    arms, decided = medians[:2], medians[2:]
    return [
        [
            f"{problem.name} ({problem.kind}), {preset}",
            *(f"{median:.3g}" for median in arms),
            *(f"{median:.3g}{_over(median, min(arms))}" for median in decided),
            report.comparison(found[-1], found[0])[0],
        ]
    ]


def _over(ours: float, theirs: float) -> str:
    """A ratio in brackets, nothing where what it is taken over is solved."""
    return f" ({ours / theirs:.2f})" if theirs else ""


def with_rows(document: str, body: list[list[str]]) -> str:
    """A document with the table of today's scores."""
    return table.replaced(document, START, END, table.markdown(HEADER, body))
