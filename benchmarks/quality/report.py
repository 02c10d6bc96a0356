"""Tables of the scores of all methods, for the documentation and the terminal."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.cells import markdown, replaced
from benchmarks.quality import names, statistics, timing
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
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, read

README = Path(__file__).parent / "README.md"
START = "<!-- scores: made by `python -m benchmarks.quality report` -->\n"
END = "<!-- /scores -->\n"
NAMES_START = "<!-- names: made by `python -m benchmarks.quality report` -->\n"
VARIED = ("ablation", "directions", "carried", "policies")
HEADER = [
    "method",
    "median (mean ± sd)",
    "better / same / worse; difference (95 %)",
    "forwards; time",
]
VARIED_HEADER = HEADER[:3]
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
    return [
        _row(problem, name, at, found[name], reference, timed)
        for at, name in enumerate(ranked(found))
    ]


def sections(problems: Iterable[Problem], store: Store) -> Iterator[tuple[str, Rows]]:
    """Title and rows of the table of every problem that has scores."""
    for problem in problems:
        found = records(problem, store)
        name = timing.baseline(problem)
        if name in found:
            title = f"{names.problem(problem.name)} (`{problem.name}`), against {shown(name)}"
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
        for what, reference, varieties, strip in compared:
            found = _scored(problem, varieties, store)
            if reference not in found or len(found) == 1:
                continue
            body = [
                [_named(name, at, strip), location(ours, None), comparison(ours, against)]
                for against in [scores(found[reference])]
                for at, (name, ours) in enumerate(
                    (name, scores(found[name])) for name in ranked(found)
                )
            ]
            against = shown(reference.removeprefix(strip))
            yield what, f"{names.problem(problem.name)}, against {against}", body


def rewritten(document: str, shown: Sections) -> str:
    """A document with the tables of today's scores, and of the names of the methods."""
    methods = [[f"`{name}`", names.method(name)] for name in METHODS]
    text = markdown(["identifier", "method"], methods)
    document = replaced(document, NAMES_START, "<!-- /names -->\n", text)
    return replaced(document, START, END, titled(HEADER, shown))


def with_varied(document: str, shown: Iterable[tuple[str, str, Rows]]) -> str:
    """A document with the tables of what was varied, each in its place."""
    shown = list(shown)
    for what in VARIED:
        start = f"<!-- {what}: made by `python -m benchmarks.quality report` -->\n"
        own = [(title, body) for kind, title, body in shown if kind == what]
        text = titled(VARIED_HEADER, own)
        document = replaced(document, start, f"<!-- /{what} -->\n", text)
    return document


def titled(header: list[str], shown: Sections) -> str:
    """Tables with their titles."""
    return "\n".join(f"### {title}\n\n{markdown(header, body)}" for title, body in shown)


def _scored(problem: Problem, names: Iterable[str], store: Store) -> dict[str, Record]:
    found = {name: store.load(problem.name, name) for name in names}
    return {name: record for name, record in found.items() if len(record.get("scores", [])) > 1}


def ranked(found: Mapping[str, Record]) -> list[str]:
    """The methods of some records, the lowest median first."""
    return sorted(found, key=lambda name: statistics.summarize(scores(found[name]), None))


def _row(
    problem: Problem, name: str, at: int, record: Record, reference: list[float], timed: Record
) -> list[str]:
    ours = scores(record)
    ratio = timed.get("methods", {}).get(name, {}).get("ratio")
    cost = f"{record['forwards']:,}"
    return [
        _named(name, at, ""),
        location(ours, problem.success),
        comparison(ours, reference),
        cost if ratio is None else f"{cost}; {ratio['median']:.2f}",
    ]


def shown(name: str) -> str:
    """A method, in words, within a sentence."""
    words = names.method(name)
    return (
        words if words[:2].isupper() or words.startswith("Adam") else words[0].lower() + words[1:]
    )


def _named(name: str, at: int, strip: str) -> str:
    """A method, in words; the first of a table is bold."""
    words = names.method(name.removeprefix(strip))
    return words if at else f"**{words}**"


def location(ours: list[float], success: float | None) -> str:
    """Where scores lie, and the share of them that counts as solved."""
    found = statistics.summarize(ours, success)
    text = f"{found.median:.4g} ({found.mean:.4g} ± {found.deviation:.2g})"
    return text if found.solved is None else f"{text}, solved {found.solved:.0%}"


def comparison(ours: list[float], reference: list[float], form: str = "+.3g") -> str:
    """On how many seeds one is better, the same or worse, and by how much, in numbers of a form."""
    paired = compared(ours, reference)
    low, difference, high = (
        format(number, form) for number in (paired.low, paired.difference, paired.high)
    )
    interval = f"{difference} ({low} to {high})"
    return f"{counts(paired)}; {interval}"


def compared(ours: list[float], reference: list[float]) -> statistics.Comparison:
    """Scores against those of a reference, on the seeds that both have."""
    pairs = min(len(ours), len(reference))
    return statistics.compare(ours[:pairs], reference[:pairs])


def counts(paired: statistics.Comparison) -> str:
    """Seeds better, same and worse, in the colour of a win, a tie or a loss."""
    text = f"{paired.better} / {paired.same} / {paired.worse}"
    return f'<span class="{outcome(paired)}">{text}</span>'


def medians(both: Iterable[float], paired: statistics.Comparison) -> list[str]:
    """The medians of a reference and of ours, that of the winner bold."""
    bold = {"win": 1, "loss": 0, "tie": None}[outcome(paired)]
    return [f"**{one:.3g}**" if at == bold else f"{one:.3g}" for at, one in enumerate(both)]


def outcome(paired: statistics.Comparison) -> str:
    """A win or a loss if the interval of the difference lies on one side of zero, else a tie."""
    return "win" if paired.high < 0 else "loss" if paired.low > 0 else "tie"
