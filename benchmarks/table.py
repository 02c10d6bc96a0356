"""The tables of the README, from the results: `python -m benchmarks.table` rewrites them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import measure

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- costs: made by `python -m benchmarks.table` -->\n", "<!-- /costs -->\n"
Rows = list[list[str]]


def tables() -> Iterator[tuple[str, list[str], Rows]]:
    """Title, header and rows of every table that there is a result for."""
    for make in (idle, cycle, noise, batches, memory, side_by_side):
        if (measure.RESULTS / f"{make.__name__.replace('batches', 'cycle')}.json").exists():
            yield make()


def idle() -> tuple[str, list[str], Rows]:
    """Steps without a cycle."""
    rows = measure.load("idle")["rows"]
    keys = ("base", "size", "samples")
    forms = ("in graph", "evolve=False")
    header = ["base", "parameters", "samples", *forms]
    return "A step without a cycle, over the base's", header, _pivot(rows, keys, "form", forms)


def cycle() -> tuple[str, list[str], Rows]:
    """Cycles over their floor."""
    rows = [row for row in measure.load("cycle")["rows"] if row["case"] == "memory"]
    modes = ("host", "device", "replay")
    header = ["parameters", "population", *modes]
    title = "A cycle, over its own forward passes and draws"
    return title, header, _pivot(rows, ("size", "population"), "memory", modes)


def noise() -> tuple[str, list[str], Rows]:
    """Cycles over plain forward passes."""
    rows = [
        {**row, "kind": f"{row['noise']}, {row['memory']}"} for row in measure.load("noise")["rows"]
    ]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    header = ["network", "parameters", "samples", *kinds]
    title = "A cycle of population 8, over its forward passes without noise"
    return title, header, _pivot(rows, ("model", "size", "samples"), "kind", kinds)


def batches() -> tuple[str, list[str], Rows]:
    """Members evaluated at a time."""
    rows = [row for row in measure.load("cycle")["rows"] if row["case"] == "batch"]
    header = ["parameters", "at a time", "time over one at a time", "memory over parameters"]
    body = [
        [
            row["size"],
            str(row["candidate_batch_size"]),
            _ratio(row),
            f"{row['temp_over_params']:.1f}",
        ]
        for row in rows
    ]
    return "Members evaluated at a time, population 16", header, body


def memory() -> tuple[str, list[str], Rows]:
    """Temporary memory of train steps."""
    rows = measure.load("memory")["rows"]
    populations = sorted({row["population"] for row in rows})
    names = {(row["method"], _share(row)): None for row in rows}
    body = []
    for method, share in names:
        found = {
            row["population"]: f"{row['temp_over_params']:.1f}"
            for row in rows
            if (row["method"], _share(row)) == (method, share)
        }
        label = f"{method}, {share}" if share else method
        body.append([label, *(found.get(population, "") for population in populations)])
    header = ["method", *(f"population {population}" for population in populations)]
    return "Temporary memory of a train step with a cycle, over the parameters", header, body


def side_by_side() -> tuple[str, list[str], Rows]:
    """A generation, beside what one would pick otherwise."""
    rows = measure.load("side_by_side")["rows"]
    header = ["parameters", "population", "method", "forwards", "time", "peak memory"]
    body = [
        [
            row["size"],
            str(row["population"]),
            row["method"],
            str(row["forwards"]),
            _ratio(row),
            _memory(row["peak_over_params"]),
        ]
        if "ratio" in row
        else [row["size"], str(row["population"]), row["method"], row["not_run"], "", ""]
        for row in rows
    ]
    return "One generation, time over ours and peak memory over the parameters", header, body


def text() -> str:
    """All tables in Markdown."""
    return "\n".join(
        f"{title}:\n\n" + "".join("| " + " | ".join(row) + " |\n" for row in _ruled(header, rows))
        for title, header, rows in tables()
    )


def pretty(title: str, header: list[str], rows: Rows) -> Table:
    """A table for the terminal."""
    shown = Table(title=title)
    for name in header:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*row)
    return shown


def rewritten(readme: str) -> str:
    """The README with the tables of today's results."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text()}\n{END}{after}"


def _ruled(header: list[str], rows: Rows) -> Rows:
    return [header, ["---"] * len(header), *rows]


def _pivot(rows: list[dict[str, Any]], keys: Any, across: str, columns: Any) -> Rows:
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        label = tuple(str(row[key]) for key in keys)
        cells.setdefault(label, {})[row[across]] = _ratio(row)
    return [[*label, *(found[column] for column in columns)] for label, found in cells.items()]


def _ratio(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _memory(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio:.1f}"


def _share(row: dict[str, Any]) -> str:
    if not row["elites"]:
        return ""
    if row["elites"] == 1:
        return "1 elite"
    return "a half elite" if 2 * row["elites"] == row["population"] else "a quarter elite"


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
