"""Tables of the scores, for the documentation and the terminal."""

from collections.abc import Iterable, Iterator, Mapping
import math
from pathlib import Path

import numpy as np

from benchmarks import table
from benchmarks.quality import statistics, timing
from benchmarks.quality.methods import (
    CARRIED,
    DIRECTIONS,
    METHODS,
    POLICIES,
    VARIANTS,
    carried,
    directions,
    ppo,
    variants,
)
from benchmarks.quality.methods.presets import OURS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, read

README = Path(__file__).parent / "README.md"
OVERVIEW = Path(__file__).parents[2] / "docs" / "results" / "quality.md"
OVERVIEW_START = "<!-- quality: made by `python -m benchmarks.quality report` -->\n"
OVERVIEW_END = "<!-- /quality -->\n"
START = "<!-- scores: made by `python -m benchmarks.quality report` -->\n"
END = "<!-- /scores -->\n"
VARIED = ("ablation", "directions", "carried", "policies")
HEADER = [
    "method",
    "median",
    "mean ± sd",
    "solved",
    "better / same / worse",
    "difference (95 %)",
    "forwards",
    "time",
]
VARIED_HEADER = ["variant", "median", "mean ± sd", "better / same / worse", "difference (95 %)"]
OVERVIEW_HEADER = [
    "problem",
    "reference",
    "best of the others",
    "best of the presets",
    "against the reference: better / same / worse",
    "safe preset, mean over Adam's",
]
Rows = list[list[str]]
Sections = list[tuple[str, Rows]]


def records(problem: Problem, store: Store) -> dict[str, Record]:
    """The records that have scores to compare, by method."""
    return _scored(problem, [*METHODS, timing.equal_time_name(problem)], store)


def scores(record: Record) -> list[float]:
    """The scores of a record, seed by seed."""
    return [read(score) for score in record["scores"]]


def rows(problem: Problem, found: Mapping[str, Record], timed: Record) -> Rows:
    """A row a method, the lowest median first."""
    reference = scores(found[timing.baseline(problem)])
    return [_row(problem, name, found[name], reference, timed) for name in _ranked(found)]


def sections(problems: Iterable[Problem], store: Store) -> Iterator[tuple[str, Rows]]:
    """Title and rows of the table of every problem that has scores."""
    for problem in problems:
        found = records(problem, store)
        name = timing.baseline(problem)
        if name in found:
            title = f"{problem.name} ({problem.kind}), against {name}"
            yield title, rows(problem, found, store.load(problem.name, timing.NAME))


def varied(problems: Iterable[Problem], store: Store) -> Iterator[tuple[str, str, Rows]]:
    """What was varied, and title and rows of the table of every problem that it was varied on."""
    as_it_is = f"{directions.PREFIX}as_it_is"
    for problem in problems:
        base = timing.baseline(problem)
        longer = [
            ("carried", base + ending, [name for name in CARRIED if name.endswith(ending)], "")
            for ending in map(carried.suffix, carried.TIMES)
        ]
        compared = [
            ("ablation", variants.AS_IT_IS.name, list(VARIANTS), variants.PREFIX),
            ("directions", as_it_is, [*DIRECTIONS, "straight_through"], directions.PREFIX),
            *longer,
        ]
        if problem.kind == "policy":
            compared = [("policies", ppo.METHODS[0].name, list(POLICIES), "")]
        for what, reference, names, strip in compared:
            found = _scored(problem, names, store)
            if reference not in found or len(found) == 1:
                continue
            body = [
                [name.removeprefix(strip), *_location(ours), *comparison(ours, against)]
                for against in [scores(found[reference])]
                for name, ours in ((name, scores(found[name])) for name in _ranked(found))
            ]
            yield what, f"{problem.name}, against {reference.removeprefix(strip)}", body


def overview(problems: Iterable[Problem], store: Store) -> Iterator[list[str]]:
    """A row a problem: medians of the reference, of the best other method, and of ours."""
    ours = {method.name for method in OURS}
    for problem in problems:
        found = records(problem, store)
        reference = timing.baseline(problem)
        if reference not in found or not ours & found.keys():
            continue
        # The test split has no say in which preset is shown, but it has in the best of the rest.
        shown = timing.best_of_ours(found)
        others = [name for name in _ranked(found) if name not in ours]
        medians = {name: float(np.median(scores(record))) for name, record in found.items()}
        # Of means: the median of a control that is solved is zero.
        means = {name: float(np.mean(scores(record))) for name, record in found.items()}
        over = means["safe"] / means["adam"] if {"safe", "adam"} <= found.keys() else math.nan
        yield [
            f"{problem.name} ({problem.kind})",
            f"{reference} {medians[reference]:.3g}",
            f"{others[0]} {medians[others[0]]:.3g}",
            f"**{shown} {medians[shown]:.3g}**",
            comparison(scores(found[shown]), scores(found[reference]))[0],
            f"{over:.2f}" if math.isfinite(over) else "",
        ]


def with_overview(document: str, body: Rows) -> str:
    """A document with the overview of today's scores."""
    text = table.markdown(OVERVIEW_HEADER, body)
    return table.replaced(document, OVERVIEW_START, OVERVIEW_END, text)


def rewritten(document: str, shown: Sections) -> str:
    """A document with the tables of today's scores."""
    return table.replaced(document, START, END, _titled(HEADER, shown))


def with_varied(document: str, shown: Iterable[tuple[str, str, Rows]]) -> str:
    """A document with the tables of what was varied, each in its place."""
    shown = list(shown)
    for what in VARIED:
        start = f"<!-- {what}: made by `python -m benchmarks.quality report` -->\n"
        own = [(title, body) for kind, title, body in shown if kind == what]
        text = _titled(VARIED_HEADER, own)
        document = table.replaced(document, start, f"<!-- /{what} -->\n", text)
    return document


def _titled(header: list[str], shown: Sections) -> str:
    return "\n".join(f"### {title}\n\n{table.markdown(header, body)}" for title, body in shown)


def _scored(problem: Problem, names: Iterable[str], store: Store) -> dict[str, Record]:
    found = {name: store.load(problem.name, name) for name in names}
    return {name: record for name, record in found.items() if len(record.get("scores", [])) > 1}


def _ranked(found: Mapping[str, Record]) -> list[str]:
    return sorted(found, key=lambda name: statistics.summarize(scores(found[name]), None))


def _row(
    problem: Problem, name: str, record: Record, reference: list[float], timed: Record
) -> list[str]:
    ours = scores(record)
    summary = statistics.summarize(ours, problem.success)
    ratio = timed.get("methods", {}).get(name, {}).get("ratio")
    return [
        name,
        *_location(ours),
        "" if summary.solved is None else f"{summary.solved:.0%}",
        *comparison(ours, reference),
        f"{record['forwards']:,}",
        "" if ratio is None else f"{ratio['median']:.2f}",
    ]


def _location(ours: list[float]) -> list[str]:
    summary = statistics.summarize(ours, None)
    return [f"{summary.median:.4g}", f"{summary.mean:.4g} ± {summary.deviation:.2g}"]


def comparison(ours: list[float], reference: list[float]) -> list[str]:
    """On how many seeds one is better, the same or worse, and by how much."""
    pairs = min(len(ours), len(reference))
    paired = statistics.compare(ours[:pairs], reference[:pairs])
    return [
        f"{paired.better} / {paired.same} / {paired.worse}",
        f"{paired.difference:+.3g} ({paired.low:+.3g} to {paired.high:+.3g})",
    ]
