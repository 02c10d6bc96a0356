"""Tables of the scores, for the README and the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.quality import statistics, timing
from benchmarks.quality.methods import METHODS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, read

README = Path(__file__).parent / "README.md"
START = "<!-- scores: made by `python -m benchmarks.quality report` -->\n"
END = "<!-- /scores -->\n"
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
Rows = list[list[str]]


def records(problem: Problem, store: Store) -> dict[str, Record]:
    """The records that have scores to compare, by method."""
    names = [*METHODS, timing.equal_time_name(problem)]
    found = {name: store.load(problem.name, name) for name in names}
    return {name: record for name, record in found.items() if len(record.get("scores", [])) > 1}


def scores(record: Record) -> list[float]:
    """The scores of a record, seed by seed."""
    return [read(score) for score in record["scores"]]


def rows(problem: Problem, found: Mapping[str, Record], timed: Record) -> Rows:
    """A row a method, the lowest median first."""
    reference = scores(found[timing.baseline(problem)])
    ranked = sorted(found, key=lambda name: statistics.summarize(scores(found[name]), None))
    return [_row(problem, name, found[name], reference, timed) for name in ranked]


def sections(problems: Iterator[Problem], store: Store) -> Iterator[tuple[str, Rows]]:
    """Title and rows of the table of every problem that has scores."""
    for problem in problems:
        found = records(problem, store)
        name = timing.baseline(problem)
        if name in found:
            title = f"{problem.name} ({problem.kind}), against {name}"
            yield title, rows(problem, found, store.load(problem.name, timing.NAME))


def rewritten(document: str, shown: list[tuple[str, Rows]]) -> str:
    """A document with the tables of today's results."""
    before, rest = document.split(START)
    _, after = rest.split(END)
    text = "\n".join(
        f"### {title}\n\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in [HEADER, ["---"] * len(HEADER), *body])
        for title, body in shown
    )
    return f"{before}{START}\n{text}\n{END}{after}"


def _row(
    problem: Problem, name: str, record: Record, reference: list[float], timed: Record
) -> list[str]:
    ours = scores(record)
    summary = statistics.summarize(ours, problem.success)
    pairs = min(len(ours), len(reference))
    paired = statistics.compare(ours[:pairs], reference[:pairs])
    ratio = timed.get("methods", {}).get(name, {}).get("ratio")
    return [
        name,
        f"{summary.median:.4g}",
        f"{summary.mean:.4g} ± {summary.deviation:.2g}",
        "" if summary.solved is None else f"{summary.solved:.0%}",
        f"{paired.better} / {paired.same} / {paired.worse}",
        f"{paired.difference:+.3g} ({paired.low:+.3g} to {paired.high:+.3g})",
        f"{record['forwards']:,}",
        "" if ratio is None else f"{ratio['median']:.2f}",
    ]
