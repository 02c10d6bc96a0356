"""Tunes a method on a problem and runs it on fresh seeds, from wherever a record stands."""

from collections.abc import Callable
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.quality import edges
from benchmarks.quality.methods import LEARNING, METHODS, SHARES
from benchmarks.quality.methods.method import Method, Settings, Trainer
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, read, written
from xla_options import known

FIRST_TUNE_SEED, FIRST_SEED = 1000, 2000


class Effort(NamedTuple):
    """How much is run.

    Attributes:
        trials: settings drawn for a method that is tuned.
        tune_seeds: seeds that each of them is run on.
        seeds: seeds that the best of them is run on.
        share: of a problem's budget.
        past_edges: whether tuning goes on past the edges of what was drawn, for the methods that
            are given that.
    """

    trials: int = 16
    tune_seeds: int = 2
    seeds: int = 30
    share: float = 1.0
    past_edges: bool = True

    def budget(self, method: Method, problem: Problem) -> int:
        """Sample-forwards that a run may spend."""
        return int(problem.budget * method.budget * self.share)

    def runs(self, method: Method) -> int:
        """Trials and runs on fresh seeds."""
        return self.seeds + (self.trials if method.tunes else 0)


def complete(
    method: Method,
    problem: Problem,
    store: Store,
    effort: Effort,
    on_run: Callable[[], None] = lambda: None,
) -> Record:
    """Runs what a record lacks and saves it after every trial and every seed.

    Args:
        method: the method.
        problem: the problem; the method applies to it.
        store: holds the records.
        effort: what makes a record complete.
        on_run: called after each trial and each seed, or at once for what is there.

    Returns:
        The complete record.
    """
    budget = effort.budget(method, problem)
    record = store.load(problem.name, method.name)
    if record.get("budget") != budget:
        record = {"problem": problem.name, "method": method.name, "budget": budget}
    trainer = Trainer(method, problem, budget, known("brief"))

    def save() -> None:
        store.save(problem.name, method.name, record)

    named = {**METHODS, **SHARES, **LEARNING}
    sources = [
        complete(named[name], problem, store, effort)["settings"] for name in method.settings_of
    ]
    if method.tunes:
        drawn = draws(method, effort.trials)
        if sources:
            drawn = [method.changed(one, *sources) for one in drawn]
        settings: Settings = _tuned(record, trainer, method, problem, effort, save, on_run, drawn)
    else:
        settings = method.changed(*sources)
    if record.get("settings") != settings:
        forwards = trainer.forwards(settings)
        record |= {"settings": settings, "forwards": forwards, "scores": [], "seconds": []}
    _run(record, trainer, problem, effort, save, on_run)
    # Hundreds of programs would exhaust the mappings of memory that a process may have.
    jax.clear_caches()
    return record


def draws(method: Method, trials: int) -> list[Settings]:
    """The settings to try: a trial draws from a key of its own, the learning rate first."""
    return [method.settings(np.random.default_rng(trial)) for trial in range(trials)]


def _tuned(
    record: Record,
    trainer: Trainer,
    method: Method,
    problem: Problem,
    effort: Effort,
    save: Callable[[], None],
    on_run: Callable[[], None],
    drawn: list[Settings],
) -> Settings:
    """Completes the trials of what was drawn; the settings of the lowest mean validation score.

    Where a method may, tuning goes on until no setting of the best lies at an edge.
    """
    seeds = range(FIRST_TUNE_SEED, FIRST_TUNE_SEED + effort.tune_seeds)
    score = jax.jit(lambda params: problem.score(params, problem.validation))

    def tried(trials: list[Record], at: int, settings: Settings) -> Record:
        # Trials of another search space are no trials of this one.
        if at < len(trials) and not _holds(trials[at], settings, effort):
            del trials[at:]
        if at == len(trials):
            trials.append({"settings": settings, **_scores(trainer, settings, seeds, score)})
            save()
        return trials[at]

    trials = record.setdefault("trials", [])
    found = []
    for at, settings in enumerate(drawn):
        found.append(tried(trials, at, settings))
        on_run()
    best: Settings = min(found, key=mean)["settings"]
    if not (method.past_edges and effort.past_edges):
        return best
    further = record.setdefault("further", [])
    while (moved := edges.beyond(best, [trial["settings"] for trial in found])) is not None:
        found.append(tried(further, len(found) - effort.trials, moved))
        best = min(found, key=mean)["settings"]
    return best


def _holds(trial: Record, settings: Settings, effort: Effort) -> bool:
    """Whether a trial is of some settings, and complete."""
    found = trial["settings"]
    alike = found.keys() == settings.keys() and all(
        _same(found[name], settings[name]) for name in settings
    )
    return alike and len(trial["scores"]) == effort.tune_seeds


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a setting agree; the last digits of a draw depend on the machine."""
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-12)
    return bool(value == other)


def _run(
    record: Record,
    trainer: Trainer,
    problem: Problem,
    effort: Effort,
    save: Callable[[], None],
    on_run: Callable[[], None],
) -> None:
    """Completes the runs on fresh seeds, judged on the test split."""
    score = jax.jit(lambda params: problem.score(params, problem.test))
    for seed in range(effort.seeds):
        if seed == len(record["scores"]):
            run = _scores(trainer, record["settings"], [FIRST_SEED + seed], score)
            record["scores"] += run["scores"]
            record["seconds"] += run["seconds"]
            save()
        on_run()


def _scores(trainer: Trainer, settings: Settings, seeds: Any, score: Any) -> dict[str, list[Any]]:
    """Scores and wall times of runs; compiling is not timed."""
    trainer.prepare(settings)
    scores, seconds = [], []
    for seed in seeds:
        start = time.perf_counter()
        params = jax.block_until_ready(trainer(settings, seed))
        # Further digits are noise, which does not compress.
        seconds.append(float(f"{time.perf_counter() - start:.2g}"))
        scores.append(written(float(score(params))))
    return {"scores": scores, "seconds": seconds}


def mean(trial: Record) -> float:
    """The validation score of a trial."""
    return float(np.mean([read(score) for score in trial["scores"]]))
