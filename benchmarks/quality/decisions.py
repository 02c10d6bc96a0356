"""What decides within a run whether to evolve, beside both arms: a table, and how often it is near.

A row is a base on a problem and the preset around it.
"""

from collections.abc import Iterable, Iterator
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cells import Table, beside, markdown, replaced, titled
from benchmarks.quality import diagnosis, names, report, statistics
from benchmarks.quality.methods.checkpoint import LIGHT, arms_of
from benchmarks.quality.methods.deciding import name_of
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

GUIDE = Path(__file__).parents[2] / "docs" / "results" / "deciding.md"
WAYS = ("race", "vetoed_race", "vetoed_early_race")
ARM_NAMES = ("base alone", "preset")
WAY_NAMES = ("race at a fifth", "veto, race at a fifth", "veto, race at a tenth")
HEADER = ["problem, preset", "base alone; preset", "race at a fifth; behind a veto"]
HEADER += ["veto, race at a tenth; against the base"]
# Rows of the trials that thresholds and shares come from, and that showed how early a race tells.
_SHAPED = {
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
# Light cycles are on the same problems, but for the landscapes.
SHAPING = _SHAPED | {(problem, LIGHT) for problem, preset in _SHAPED if preset != "global_"}
NEAR, NEARER = 1.15, 1.05


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
        for base, preset in arms_of(problem):
            names = [base, preset, *(name_of(way, base, preset) for way in WAYS)]
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
            beside(*(_reached(one, way) for way in one.ways[:-1])),
            beside(
                _reached(one, one.ways[-1]),
                report.counts(report.compared(one.ways[-1], one.arms[0])),
            ),
        ]
        for one in found
    ]


def tallies(found: Iterable[Decided]) -> list[Table]:
    """For each arm, and each way of deciding, how often its median is near that of the better arm.

    A problem whose gradient is that of its stand-in is counted once, not as two rows.
    """
    different = list({(one.problem.name, *map(tuple, one.arms)): one for one in found}.values())
    fresh = [(one.problem.name, one.preset) not in SHAPING for one in different]
    near, against = [], []
    for at, name in enumerate((*ARM_NAMES, *WAY_NAMES)):
        scores = [(*one.arms, *one.ways)[at] for one in different]
        behind = list(map(_behind, different, scores))
        near.append(
            [
                name,
                _share(ratio <= NEARER for ratio in behind),
                _share(ratio <= NEAR for ratio in behind),
                f"{_times(max(behind))} times",
            ]
        )
        paired = [
            statistics.compare(ours, one.arms[0])
            for ours, one in zip(scores, different, strict=True)
        ]
        against.append(
            [
                name,
                _share(ratio <= NEARER for ratio in itertools.compress(behind, fresh)),
                _share(one.high < 0 for one in paired),
                _share(one.low > 0 for one in paired),
            ]
        )
    header = ["way", "within 5 % of the better arm", "within 15 % of it", "farthest behind it"]
    other = ["way", "within 5 %, of what shaped nothing"]
    other += [f"{outcome} than the base by more than noise" for outcome in ("better", "worse")]
    return [
        ("Comparisons near the better arm", header, near),
        ("Comparisons that shaped nothing, and all against the base", other, against),
    ]


def _share(found: Iterable[bool]) -> str:
    """How many of how many."""
    those = list(found)
    return f"{sum(those)} of {len(those)}"


def _reached(one: Decided, way: list[float]) -> str:
    """The median of a way, in brackets over that of the better arm."""
    return f"{np.median(way):.3g} ({_times(_behind(one, way))})"


def _behind(one: Decided, scores: list[float]) -> float:
    """A median over that of the better arm; one where that is zero, and so is this."""
    ours, theirs = float(np.median(scores)), min(float(np.median(arm)) for arm in one.arms)
    return 1.0 if ours == theirs else ours / theirs if theirs else math.inf


def _times(ratio: float) -> str:
    """A ratio that may be large."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.1g}"


def with_rows(document: str, found: Iterable[Decided], store: Store) -> str:
    """The page of this, with all tables of today's scores."""
    found = list(found)
    for ending, of_light in (("", False), ("_light", True)):
        own = [one for one in found if (one.preset == LIGHT) == of_light]
        for name, text in (
            ("diagnosis", markdown(diagnosis.HEADER, diagnosis.shown(store, of_light=of_light))),
            ("deciding", markdown(HEADER, rows(own))),
            ("tallies", titled(tallies(own)) if own else ""),
        ):
            start = f"<!-- {name}{ending}: made by `python -m benchmarks.quality report` -->\n"
            document = replaced(document, start, f"<!-- /{name}{ending} -->\n", text)
    return document
