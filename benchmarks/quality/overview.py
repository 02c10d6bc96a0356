"""A row a problem, and three wins and three losses: the tables of the documentation."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cells import markdown, replaced, titled
from benchmarks.quality import (
    learning,
    longer,
    names,
    report,
    selection,
    sigmas,
    statistics,
    timing,
)
from benchmarks.quality.methods import adapting, shares
from benchmarks.quality.methods.presets import OURS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "quality.md"
# Where the wins and the losses are shown.
SHORT = (ROOT / "README.md", ROOT / "docs" / "start" / "will_it_help.md")
HEADER = ["problem", "reference", "best preset; seeds better / same / worse", "best of all others"]
SAFE_HEADER = ["problem", "mean over that of Adam", "seeds better / same / worse"]
SHORT_HEADER = ["problem", "without cycles", "with cycles; better / same / worse"]
SHORT_HEADER += ["with random ranks"]
# The clearest win of each kind, and the three largest losses.
WINS = ("ternary_absmax", "sealed_chip_12", "levy_100")
LOSSES = ("ternary_1d", "zero_one_imbalanced", "int4_digits")


class Pair(NamedTuple):
    """A reference and the preset that is best in tuning, on one problem.

    Attributes:
        problem: a name, in words.
        names: of the two methods, in words.
        medians: of their scores.
        paired: the preset against the reference.
        other: name and median of the best of all other methods on the test split.
        random: the median of the preset with random ranks, None if that has not been run.
    """

    problem: str
    names: tuple[str, str]
    medians: tuple[float, float]
    paired: statistics.Comparison
    other: tuple[str, float]
    random: float | None


def pair(problem: Problem, store: Store) -> Pair | None:
    """The pair of a problem, if it has been run."""
    ours = {method.name for method in (*OURS, *adapting.METHODS)}
    found = report.records(problem, store)
    reference = timing.baseline(problem)
    if reference not in found or not ours & found.keys():
        return None
    # The test split has no say in which preset is shown, but it has in the best of the rest.
    best = timing.best_of_ours(found)
    other = next(name for name in report.ranked(found) if name not in ours)
    medians = {name: float(np.median(report.scores(record))) for name, record in found.items()}
    control = store.load(problem.name, best + shares.RANDOM)
    return Pair(
        names.problem(problem.name),
        (names.method(reference), names.method(best)),
        (medians[reference], medians[best]),
        report.compared(report.scores(found[best]), report.scores(found[reference])),
        (names.method(other), medians[other]),
        float(np.median(report.scores(control))) if control else None,
    )


def pairs(problems: Iterable[Problem], store: Store) -> Iterator[Pair]:
    """The pairs of all problems that have been run."""
    return (found for problem in problems if (found := pair(problem, store)))


def rows(found: Iterable[Pair]) -> list[list[str]]:
    """A row a problem; the winner is bold."""
    body = []
    for one in found:
        medians = report.medians(one.medians, one.paired)
        cells = [f"{name} {median}" for name, median in zip(one.names, medians, strict=True)]
        cells[1] = f"{cells[1]}; {report.counts(one.paired)}"
        body.append([one.problem, *cells, f"{one.other[0]} {one.other[1]:.3g}"])
    return body


def safe_rows(problems: Iterable[Problem], store: Store) -> list[list[str]]:
    """The safe preset beside Adam alone.

    Of means: the median of a control that is solved is zero.
    """
    body = []
    for problem in problems:
        found = report.records(problem, store)
        if {"safe", "adam"} <= found.keys():
            ours, theirs = (report.scores(found[name]) for name in ("safe", "adam"))
            over = float(np.mean(ours)) / float(np.mean(theirs))
            counts = report.counts(report.compared(ours, theirs))
            body.append([names.problem(problem.name), f"{over:.2f}", counts])
    return body


def short_rows(found: Iterable[Pair]) -> list[list[str]]:
    """Some pairs, with the winner bold, beside the same jumps with random ranks."""
    return [_short(one) for one in found]


def _short(one: Pair) -> list[str]:
    won = report.outcome(one.paired) == "win"
    numbers = [f"{median:.3g}" for median in one.medians]
    numbers[won] = f"**{numbers[won]}**"
    shown = [f"{number} ({name})" for number, name in zip(numbers, one.names, strict=True)]
    shown[1] = f"{shown[1]}; {report.counts(one.paired)}"
    return [one.problem, *shown, "" if one.random is None else f"{one.random:.3g}"]


def written(problems: list[Problem], store: Store) -> dict[Path, str]:
    """The files that show these tables, with those of today's scores."""
    found = list(pairs(problems, store))
    documents = {PAGE: with_table(PAGE.read_text(), "quality", HEADER, rows(found))}
    body = safe_rows(problems, store)
    documents[PAGE] = with_table(documents[PAGE], "safe", SAFE_HEADER, body)
    compared = list(selection.compared(problems, store))
    text = titled(selection.overview(compared))
    documents[PAGE] = with_text(documents[PAGE], "shares", text)
    for name, header, body in (
        ("selection", selection.TALLIES_HEADER, selection.tallies(compared)),
        ("sigma", sigmas.HEADER, sigmas.rows(store)),
        ("learning", learning.HEADER, learning.rows(problems, store)),
        ("longer", longer.HEADER, longer.rows(problems, store)),
    ):
        documents[PAGE] = with_table(documents[PAGE], name, header, body)
    short = short_rows(chosen(found))
    for path in SHORT if short else ():
        documents[path] = with_table(path.read_text(), "outcomes", SHORT_HEADER, short)
    return documents


def chosen(found: Iterable[Pair]) -> list[Pair]:
    """The wins and the losses that are shown; none if one of them has not been run."""
    by_name = {one.problem: one for one in found}
    shown = [by_name.get(names.problem(name)) for name in (*WINS, *LOSSES)]
    return [one for one in shown if one] if all(shown) else []


def with_table(document: str, name: str, header: list[str], body: list[list[str]]) -> str:
    """A document with a table between its marks."""
    return with_text(document, name, markdown(header, body))


def with_text(document: str, name: str, text: str) -> str:
    """A document with what is between two marks."""
    start = f"<!-- {name}: made by `python -m benchmarks.quality report` -->\n"
    return replaced(document, start, f"<!-- /{name} -->\n", text)
