"""Wall time of tuned runs side by side, and the baseline at the time of our best."""

from collections.abc import Mapping
import functools

import jax

from benchmarks import measure
from benchmarks.quality.methods import METHODS
from benchmarks.quality.methods.method import Method, Trainer
from benchmarks.quality.methods.presets import OURS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, short
from benchmarks.quality.runner import Effort, mean

NAME = "time"


def baseline(problem: Problem) -> str:
    """What a user would run otherwise: the trick where there is one, else Adam."""
    return "straight_through" if problem.straight_through else "adam"


def equal_time_name(problem: Problem) -> str:
    """The name of the baseline that may take as long as our best method."""
    return f"{baseline(problem)}_equal_time"


def time_all(problem: Problem, store: Store, effort: Effort, rounds: int) -> Record:
    """Times one run of every method that was tuned on a problem; saves and returns ratios."""
    runs = {}
    for name, method in METHODS.items():
        record = store.load(problem.name, name)
        if "settings" in record:
            trainer = Trainer(method, problem, effort.budget(method, problem))
            runs[name] = functools.partial(trainer, record["settings"], 0)
    # Further digits are noise, which does not compress: most of the file would be that.
    rows = jax.tree.map(short, measure.compare(runs, baseline(problem), rounds))
    timed = {"problem": problem.name, "reference": baseline(problem), "methods": rows}
    store.save(problem.name, NAME, timed)
    return timed


def equal_time(problem: Problem, store: Store) -> Method:
    """The baseline with a budget that takes as long as our best method, tuned anew."""
    ratios = store.load(problem.name, NAME)["methods"]
    name = best_of_ours({name: store.load(problem.name, name) for name in ratios})
    method = METHODS[baseline(problem)]
    return method._replace(
        name=equal_time_name(problem), budget=max(ratios[name]["ratio"]["median"], 1.0)
    )


def best_of_ours(found: Mapping[str, Record]) -> str:
    """Which of our methods among some records did best in tuning; the test split has no say."""
    ours = [method.name for method in OURS if method.name in found]
    return min(ours, key=lambda name: min(map(mean, found[name]["trials"])))
