"""Runs the benchmarks: `python -m benchmarks [--quick] [--keep-freed-memory] [name ...]`."""

import argparse
import importlib

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import figure, measure, table

NAMES = ("idle", "idle_host", "cycle", "memory", "noise", "draws", "factored", "side_by_side")
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def main() -> None:
    """Measures what is asked for, then prints every result there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="all if none is given")
    parser.add_argument("--quick", action="store_true", help="small sizes; results are not kept")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="as accelerators do; the results are NAME_kept.json",
    )
    arguments = parser.parse_args()
    if arguments.keep_freed_memory:
        measure.keep_freed_memory()
    suffix = "_kept" if arguments.keep_freed_memory else ""
    console = Console()
    for name in arguments.names or NAMES:
        measure_all(name, suffix, arguments.quick, console)
    if not arguments.quick:
        for title, header, rows in table.tables():
            console.print(table.pretty(title, header, rows))
        console.print(f"Plot: {figure.draw()}")


def measure_all(name: str, suffix: str, quick: bool, console: Console) -> None:
    """Runs the cases of a benchmark; saves what is measured after every one."""
    cases = list(importlib.import_module(f"benchmarks.{name}").cases(quick))
    rows = []
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task(name, total=len(cases))
        for description, run in cases:
            progress.update(task, description=f"{name}: {description}")
            rows += run()
            progress.advance(task)
            if not quick:
                measure.save(name + suffix, rows)


if __name__ == "__main__":
    main()
