"""What decides within a run whether to evolve, beside both arms: a table, and how often it is near.

A row is a base on a problem and the preset around it.
"""

from collections.abc import Callable, Iterable, Iterator
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import table
from benchmarks.quality import names, report, statistics
from benchmarks.quality.methods.checkpoint import ARMS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

GUIDE = Path(__file__).parents[2] / "docs" / "results" / "deciding.md"
START = "<!-- deciding: made by `python -m benchmarks.quality report` -->\n"
END = "<!-- /deciding -->\n"
WAYS = ("race", "vetoed_race", "vetoed_early_race")
ARM_NAMES = ("base alone", "preset")
WAY_NAMES = ("race at a fifth", "veto, race at a fifth", "veto, race at a tenth")
HEADER = ["problem, preset", "base alone; preset", *WAY_NAMES, "last against the base"]
# Rows of the trials that thresholds and shares come from, and that showed how early a race tells.
SHAPING = {
    ("ternary_absmax", "metric_on_straight_through"),
    ("ternary_absmax", "metric"),
    ("ternary_mse", "metric_on_straight_through"),
    ("int4_digits", "metric_on_straight_through"),
    ("ternary_1d", "metric_on_straight_through"),
    ("friedman", "metric"),
    ("label_noise", "metric"),
    ("levy_100", "global_"),
    ("rastrigin_100", "global_"),
}
TALLIES_START = "<!-- tallies: made by `python -m benchmarks.quality report` -->\n"
TALLIES_END = "<!-- /tallies -->\n"
TALLIES = (
    "comparisons",
    "within 5 % of the better arm",
    "within 15 % of it",
    "farthest behind it",
    "comparisons that shaped nothing",
    "within 5 %, of these",
    "better than the base by more than noise",
    "worse than the base by more than noise",
)


class Decided(NamedTuple):
    """Scores over the seeds.

    Attributes:
        problem: what was to be solved.
        preset: name of the preset.
        arms: of the base and of the preset.
        ways: of each way of deciding.
    """

    problem: Problem
    preset: str
    arms: tuple[list[float], list[float]]
    ways: tuple[list[float], ...]


def decided(problems: Iterable[Problem], store: Store) -> Iterator[Decided]:
    """What has been run."""
    for problem in problems:
        for base, preset in ARMS:
            names = [base, preset, *(f"{way}_{preset}" for way in WAYS)]
            loaded = [store.load(problem.name, name) for name in names]
            if all(record.get("scores") for record in loaded):
                one, other, *ways = map(report.scores, loaded)
                yield Decided(problem, preset, (one, other), tuple(ways))


def rows(found: Iterable[Decided]) -> list[list[str]]:
    """Medians of the score, in brackets over that of the better of the two arms.

    The seeds that are counted last are those of the last way of deciding.
    """
    return [
        [
            f"{names.problem(one.problem.name)}, {report.shown(one.preset)}",
            "; ".join(f"{np.median(scores):.3g}" for scores in one.arms),
            *(f"{np.median(way):.3g} ({_times(_behind(one, way))})" for way in one.ways),
            report.counts(report.compared(one.ways[-1], one.arms[0])),
        ]
        for one in found
    ]


def tallies(found: Iterable[Decided]) -> list[list[str]]:
    """For each arm, and each way of deciding, how often its median is near that of the better arm.

    A problem whose gradient is that of its stand-in is counted once, not as two rows.
    """
    different = {(one.problem.name, *map(tuple, one.arms)): one for one in found}.values()

    def tally(scores: Callable[[Decided], list[float]]) -> list[str]:
        behind = [_behind(one, scores(one)) for one in different]
        fresh = [
            ratio
            for one, ratio in zip(different, behind, strict=True)
            if (one.problem.name, one.preset) not in SHAPING
        ]
        against = [statistics.compare(scores(one), one.arms[0]) for one in different]
        return [
            str(len(behind)),
            str(sum(ratio <= 1.05 for ratio in behind)),
            str(sum(ratio <= 1.15 for ratio in behind)),
            f"{_times(max(behind))} times",
            str(len(fresh)),
            str(sum(ratio <= 1.05 for ratio in fresh)),
            str(sum(one.high < 0 for one in against)),
            str(sum(one.low > 0 for one in against)),
        ]

    arms = [tally(lambda one, at=at: one.arms[at]) for at in range(len(ARM_NAMES))]
    ways = [tally(lambda one, at=at: one.ways[at]) for at in range(len(WAY_NAMES))]
    return [list(row) for row in zip(TALLIES, *arms, *ways, strict=True)]


def _behind(one: Decided, scores: list[float]) -> float:
    """A median over that of the better arm; one where that is zero, and so is this."""
    ours, theirs = float(np.median(scores)), min(float(np.median(arm)) for arm in one.arms)
    return 1.0 if ours == theirs else ours / theirs if theirs else math.inf


def _times(ratio: float) -> str:
    """A ratio that may be large."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.1g}"


def with_rows(document: str, found: Iterable[Decided]) -> str:
    """A document with both tables of today's scores."""
    found = list(found)
    text = table.markdown(HEADER, rows(found))
    document = table.replaced(document, START, END, text)
    text = table.markdown(["", *ARM_NAMES, *WAY_NAMES], tallies(found))
    return table.replaced(document, TALLIES_START, TALLIES_END, text)
