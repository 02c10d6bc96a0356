"""What cycles reach on shares of the compute, and what selection adds over the same jumps."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.cells import Table, replaced
from benchmarks.quality import names, report, timing
from benchmarks.quality.methods import shares
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store
from benchmarks.quality.runner import mean

SHIPPED, PICKED, AROUND_ADAM = "69 %", "lowest in tuning", "69 %, around Adam"
PATH = "global search by path length"
# The names of records, by the ways of the tables.
RUN = {
    "light": "light",
    "three tenths": "share_30",
    "finish": "finish",
    "global search": "global_then_base",
    PATH: "global_adaptive",
    AROUND_ADAM: "metric",
}
# The same, without the name of the base at their end.
BEHIND = {
    "light, as shipped": "light_as_shipped_on",
    "three tenths, as shipped": "share_30_as_shipped_on",
    "finish, as shipped": "finish_as_shipped_on",
    "light, base's rate": "light_at_rate_of",
    "three tenths, base's rate": "share_30_at_rate_of",
}
WAYS = (
    *("light", "three tenths", SHIPPED, "finish", *BEHIND),
    *(PICKED, AROUND_ADAM, "global search", PATH),
)
# Whichever of the base and of these is lowest in tuning.
PICKED_FROM = ("light", "three tenths", SHIPPED)
# The ways of the two tables over all problems.
SHOWN = {
    "Cycles on up to three tenths of the compute": ("light", "three tenths"),
    "Cycles on most of the compute, and a finish": (SHIPPED, "finish, as shipped"),
}
HEADER = [
    "way",
    "median; of random ranks",
    "against the reference: better / same / worse; difference (95 %)",
    "against random ranks",
]
TALLIES_HEADER = [
    "way",
    "problems",
    "against the reference: better / worse by more than noise",
    "against random ranks: better / worse by more than noise",
]


class Compared(NamedTuple):
    """A way to spend compute on cycles, on a problem; scores over the seeds.

    Attributes:
        problem: what was to be solved.
        reference: of what a user would run otherwise.
        way: one of `WAYS`.
        scores: with selection.
        random: with random ranks.
    """

    problem: Problem
    reference: list[float]
    way: str
    scores: list[float]
    random: list[float]

    def outcomes(self) -> tuple[str, str]:
        """A win, a tie or a loss against the reference, and against random ranks."""
        against = (self.reference, self.random)
        return tuple(report.outcome(report.compared(self.scores, one)) for one in against)

    def medians(self) -> tuple[float, float, float]:
        """Of the reference, with selection, and with random ranks."""
        return tuple(float(np.median(one)) for one in (self.reference, self.scores, self.random))


def method_of(problem: Problem, way: str) -> str:
    """The name of the records of a way."""
    base = timing.baseline(problem)
    if way == SHIPPED:
        return shares.SHIPPED[base]
    return RUN.get(way) or f"{BEHIND[way]}_{base}"


def compared(problems: Iterable[Problem], store: Store) -> Iterator[Compared]:
    """What has been run, with its control."""
    for problem in problems:
        base = timing.baseline(problem)
        for way in WAYS:
            name = picked(problem, store) if way == PICKED else method_of(problem, way)
            if name is None or (way == AROUND_ADAM and base == "adam"):
                continue
            # Gradients alone have no ranks.
            control = name if name == base else name + shares.RANDOM
            records = [store.load(problem.name, one) for one in (base, name, control)]
            if all(record.get("scores") for record in records):
                reference, ours, random = map(report.scores, records)
                yield Compared(problem, reference, way, ours, random)


def picked(problem: Problem, store: Store) -> str | None:
    """The method of the lowest validation score; None if not all have been tuned.

    Of equal ones the base is taken, then the smallest share.
    """
    methods = [timing.baseline(problem), *(method_of(problem, way) for way in PICKED_FROM)]
    found = [store.load(problem.name, name) for name in methods]
    if not all(record.get("trials") and record.get("scores") for record in found):
        return None
    tuned = [min(map(mean, [*one["trials"], *one.get("further", [])])) for one in found]
    return methods[int(np.argmin(tuned))]


def sections(found: Iterable[Compared]) -> Iterator[tuple[str, report.Rows]]:
    """Title and rows of the table of every problem: a row a way."""
    by_problem: dict[str, list[Compared]] = {}
    for one in found:
        by_problem.setdefault(one.problem.name, []).append(one)
    for name, own in by_problem.items():
        base = report.shown(timing.baseline(own[0].problem))
        title = f"{names.problem(name)}, against {base} {own[0].medians()[0]:.4g}"
        yield title, [_row(one) for one in own]


def _row(one: Compared) -> list[str]:
    _, median, random = one.medians()
    return [
        one.way,
        f"{median:.4g}; {random:.4g}",
        report.comparison(one.scores, one.reference),
        report.comparison(one.scores, one.random),
    ]


def overview(found: Iterable[Compared]) -> list[Table]:
    """A row a problem: medians, in brackets those of random ranks.

    Bold is what selection improves by more than noise over both the reference and random ranks.
    """
    found = list(found)
    return [
        (title, ["problem", "reference", *ways], _medians(found, ways))
        for title, ways in SHOWN.items()
    ]


def _medians(found: list[Compared], ways: tuple[str, ...]) -> report.Rows:
    cells: dict[str, dict[str, str]] = {}
    for one in (one for one in found if one.way in ways):
        reference, median, random = one.medians()
        row = cells.setdefault(names.problem(one.problem.name), {"": f"{reference:.3g}"})
        shown = f"**{median:.3g}**" if one.outcomes() == ("win", "win") else f"{median:.3g}"
        row[one.way] = f"{shown} ({random:.3g})"
    return [[name, row[""], *(row.get(way, "") for way in ways)] for name, row in cells.items()]


def tallies(found: Iterable[Compared]) -> list[list[str]]:
    """For each way, on how many problems it differs by more than noise: an interval without 0."""
    by_way: dict[str, list[tuple[str, str]]] = {}
    for one in found:
        by_way.setdefault(one.way, []).append(one.outcomes())
    return [_tally(way, by_way[way]) for way in WAYS if way in by_way]


def _tally(way: str, outcomes: list[tuple[str, str]]) -> list[str]:
    counts = (
        f"{against.count('win')} / {against.count('loss')}"
        for against in ([one[at] for one in outcomes] for at in range(2))
    )
    return [way, str(len(outcomes)), *counts]


def with_rows(document: str, found: Iterable[Compared]) -> str:
    """A document with the tables of all problems."""
    start = "<!-- shares: made by `python -m benchmarks.quality report` -->\n"
    return replaced(
        document, start, "<!-- /shares -->\n", report.titled(HEADER, list(sections(found)))
    )
