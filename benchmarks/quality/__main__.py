"""Runs the benchmark: `python -m benchmarks.quality COMMAND [options]`."""

import argparse
import importlib.util
from pathlib import Path
import tempfile

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import measure, table
from benchmarks.quality import (
    archive,
    decisions,
    diagnosis,
    figure,
    overview,
    report,
    reproduce,
    selection,
    timing,
)
from benchmarks.quality.methods import (
    CARRIED,
    DECIDING,
    DIRECTIONS,
    LEARNING,
    METHODS,
    POLICIES,
    SHARES,
    VARIANTS,
)
from benchmarks.quality.methods.method import Method
from benchmarks.quality.problem import Problem
from benchmarks.quality.problems import POLICIES as POLICY_PROBLEMS
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.record import Store
from benchmarks.quality.runner import Effort, complete

FOLDER = measure.RESULTS / "quality"
OUTCOMES = overview.ROOT / "docs" / "pictures" / "outcomes.png"
QUICK = Effort(trials=2, tune_seeds=1, seeds=2, share=0.05, past_edges=False)
ROUNDS, QUICK_ROUNDS = 7, 3
COMMANDS = (
    "run",
    "time",
    "ablate",
    "direct",
    "carry",
    "share",
    "learn",
    "decide",
    "policies",
    "diagnose",
    "report",
    "unpack",
    "reproduce",
)
# Problems that the metric preset is taken apart on.
ABLATED = ("ternary_absmax", "ternary_mse")
_ALL = {**METHODS, **VARIANTS, **DIRECTIONS, **CARRIED, **SHARES, **LEARNING, **DECIDING}
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def main() -> None:
    """Does what the command says for the problems and methods that are asked for."""
    arguments = _arguments()
    if arguments.command == "reproduce":
        problem, method, seed = arguments.run
        print(reproduce.told(reproduce.reproduce(problem, method, int(seed))))
        return
    quick = arguments.quick
    effort = QUICK if quick else Effort(arguments.trials, arguments.tune_seeds, arguments.seeds)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) if quick else FOLDER)
        if not quick:
            archive.resume(store.folder)
        problems = arguments.problem or list(PROBLEMS)
        if arguments.command == "run" or quick:
            run(problems, arguments.method or list(METHODS), store, effort, console)
        if arguments.command == "time" or quick:
            time(problems, store, effort, QUICK_ROUNDS if quick else ROUNDS, console)
        if arguments.command == "ablate" or quick:
            ablated = arguments.problem or list(ABLATED)
            run(ablated, arguments.variant or list(VARIANTS), store, effort, console)
        if arguments.command == "direct" or quick:
            run(problems, arguments.direction or list(DIRECTIONS), store, effort, console)
        if arguments.command == "carry" or quick:
            run(problems, arguments.carried or list(CARRIED), store, effort, console)
        if arguments.command == "share" or quick:
            run(problems, arguments.shared or list(SHARES), store, effort, console)
        if arguments.command == "learn" or quick:
            run(problems, arguments.learner or list(LEARNING), store, effort, console)
        if arguments.command == "decide" or quick:
            run(problems, arguments.decider or list(DECIDING), store, effort, console)
        if arguments.command == "policies" or (quick and importlib.util.find_spec("gymnax")):
            solvers = [POLICIES[name] for name in arguments.solver or POLICIES]
            for name in arguments.policy or POLICY_PROBLEMS:
                _complete(POLICY_PROBLEMS[name](), solvers, store, effort, console)
        if arguments.command == "diagnose" or quick:
            diagnose(problems, store, console, seeds=2 if quick else None)
        if arguments.command == "report" or quick:
            # The tables, the summary and the plot of some problems would drop all others.
            show(problems, store, console, publish=not quick and not arguments.problem)


def run(
    problems: list[str], methods: list[str], store: Store, effort: Effort, console: Console
) -> None:
    """Tunes and runs methods or variants on problems."""
    for name in problems:
        problem = PROBLEMS[name]()
        chosen = [_ALL[name] for name in methods]
        applicable = [method for method in chosen if method.applies(problem)]
        _complete(problem, applicable, store, effort, console)


def time(problems: list[str], store: Store, effort: Effort, rounds: int, console: Console) -> None:
    """Times what was tuned, and runs the baseline for as long as our best method takes."""
    for name in problems:
        problem = PROBLEMS[name]()
        with console.status(f"{name}: time"):
            timing.time_all(problem, store, effort, rounds)
        _complete(problem, [timing.equal_time(problem, store)], store, effort, console)


def diagnose(problems: list[str], store: Store, console: Console, *, seeds: int | None) -> None:
    """Asks at checkpoints of the base's runs what cycles could find."""
    rows = []
    for name in problems:
        with console.status(f"{name}: diagnose"):
            found = diagnosis.rows_of(PROBLEMS[name](), store, seeds=seeds or diagnosis.SEEDS)
        rows += found
        for row in found:
            console.print(row["problem"], row["base"], row["preset"], row["at"])
    if seeds is None:
        diagnosis.save(rows, order=list(PROBLEMS))


def show(problems: list[str], store: Store, console: Console, *, publish: bool) -> None:
    """Prints the tables; with `publish` writes them into the documentation, and the plot."""
    loaded = [PROBLEMS[name]() for name in problems]
    sections = list(report.sections(loaded, store))
    varied = list(report.varied([*loaded, *(make() for make in POLICY_PROBLEMS.values())], store))
    decided = list(decisions.decided(loaded, store))
    shared = list(selection.compared(loaded, store))
    for title, rows in sections:
        console.print(table.pretty(title, report.HEADER, rows))
    for _, title, rows in varied:
        console.print(table.pretty(title, report.VARIED_HEADER, rows))
    console.print(table.pretty("Whether to evolve", decisions.HEADER, decisions.rows(decided)))
    for title, rows in selection.sections(shared):
        console.print(table.pretty(title, selection.HEADER, rows))
    found = {problem.name: (problem, report.records(problem, store)) for problem in loaded}
    if publish:
        document = report.rewritten(report.README.read_text(), sections)
        document = report.with_varied(document, varied)
        report.README.write_text(selection.with_rows(document, shared))
        for path, text in overview.written(loaded, store).items():
            path.write_text(text)
        decisions.GUIDE.write_text(decisions.with_rows(decisions.GUIDE.read_text(), decided, store))
        if chosen := overview.chosen(overview.pairs(loaded, store)):
            figure.draw_pairs(chosen, OUTCOMES)
        archive.pack(store.folder, loaded)
    picture = measure.RESULTS if publish else store.folder
    console.print(f"Plot: {figure.draw(found, picture / 'quality.png')}")


def _complete(
    problem: Problem, methods: list[Method], store: Store, effort: Effort, console: Console
) -> None:
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task(problem.name, total=sum(map(effort.runs, methods)))
        for method in methods:
            progress.update(task, description=f"{problem.name}: {method.name}")
            complete(method, problem, store, effort, lambda: progress.advance(task))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("command", nargs="?", default="run", choices=COMMANDS)
    parser.add_argument(
        "run", nargs="*", metavar="PROBLEM METHOD SEED", help="to reproduce: the run of one seed"
    )
    parser.add_argument(
        "--problem", action="append", choices=PROBLEMS, help="all if not given, to ablate two"
    )
    parser.add_argument("--method", action="append", choices=METHODS, help="all if not given")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="all if not given")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="all if not given")
    parser.add_argument("--carried", action="append", choices=CARRIED, help="all if not given")
    parser.add_argument("--shared", action="append", choices=SHARES, help="all if not given")
    parser.add_argument("--learner", action="append", choices=LEARNING, help="all if not given")
    parser.add_argument("--decider", action="append", choices=DECIDING, help="all if not given")
    parser.add_argument(
        "--policy", action="append", choices=POLICY_PROBLEMS, help="all if not given"
    )
    parser.add_argument("--solver", action="append", choices=POLICIES, help="all if not given")
    parser.add_argument("--trials", type=int, default=16, help="settings drawn for a method")
    parser.add_argument("--tune-seeds", type=int, default=2, help="seeds of each of them")
    parser.add_argument("--seeds", type=int, default=30, help="fresh seeds of the best of them")
    parser.add_argument(
        "--quick", action="store_true", help="all commands in small; results are not kept"
    )
    arguments = parser.parse_args()
    if len(arguments.run) != (3 if arguments.command == "reproduce" else 0):
        parser.error("PROBLEM METHOD SEED belong to `reproduce`, which needs all three")
    return arguments


if __name__ == "__main__":
    main()
