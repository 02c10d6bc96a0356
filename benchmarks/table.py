"""The tables of the documentation, from the results: `python -m benchmarks.table` rewrites them."""

from pathlib import Path
import re

from rich.table import Table as Grid

from benchmarks import compiled, tested, timed
from benchmarks.bbob import report as bbob
from benchmarks.cells import Rows, Table, replaced, titled
from benchmarks.g2p import report as g2p

ROOT = Path(__file__).parents[1]


def tables() -> list[Table]:
    """The tables of what a step and a cycle cost."""
    return [
        timed.idle(),
        timed.idle_host(),
        timed.cycle(),
        *timed.noise(),
        timed.draws(),
        *timed.factored(),
        *timed.factored_gpu(),
        timed.gpu(),
        *compiled.compilation(),
        compiled.leaves(),
        timed.batches(),
        compiled.memory(),
        compiled.aot(),
        *timed.side_by_side(),
        timed.division(),
    ]


def documents() -> dict[Path, dict[str, list[Table]]]:
    """The files that hold tables, by the name of their marks."""
    return {
        ROOT / "docs/results/costs.md": {
            "costs": [timed.idle(), timed.idle_host(), timed.cycle(), *timed.noise()],
            "inference": [compiled.inference()],
        },
        ROOT / "docs/concepts/memory.md": {"inference": [compiled.above_inference()]},
        ROOT / "docs/compatibility/tested_on.md": {"tested": [tested.tested_on()]},
        ROOT / "docs/results/bbob.md": {"settings": [bbob.settings()], "bbob": bbob.tables()},
        ROOT / "docs/results/g2p.md": {"g2p": g2p.tables()},
        ROOT / "docs/results/factored.md": {
            "uses": [timed.uses()],
            "costs": [*timed.factored(), *timed.factored_gpu()],
        },
        ROOT / "benchmarks" / "README.md": {
            "costs": tables(),
            "pod_plan": [compiled.pod_received(), compiled.pod_held()],
        },
    }


def pretty(title: str, header: list[str], rows: Rows) -> Grid:
    """A table for the terminal."""
    shown = Grid(title=title)
    for name in header:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(re.sub(r"<[^>]+>|\*\*", "", cell) for cell in row))
    return shown


def rewritten(document: str, shown: dict[str, list[Table]]) -> str:
    """A document with the tables of today's results."""
    for name, found in shown.items():
        start = f"<!-- {name}: made by `python -m benchmarks.table` -->\n"
        document = replaced(document, start, f"<!-- /{name} -->\n", titled(found))
    return document


if __name__ == "__main__":
    for path, shown in documents().items():
        path.write_text(rewritten(path.read_text(), shown))
