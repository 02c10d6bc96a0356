"""What `diagnose` says during runs of the base alone, beside who wins in the end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.cells import beside
from benchmarks.quality import ledger, names, report
from benchmarks.quality.methods.checkpoint import (
    LIGHT,
    PAIRS,
    arms_of,
    ask,
    end_of,
    objective_of,
    unit_of,
)
from benchmarks.quality.methods.gradient import adam, descend
from benchmarks.quality.methods.method import streams
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store
from benchmarks.quality.runner import FIRST_SEED
from egd_optax.diagnose import Diagnosis

NAME = "diagnosis"
FRACTIONS = (0.1, 0.5, 0.9)
SEEDS, REPEATS = 10, 8
HEADER = ["problem, preset", "gradient_correlation", "reliability"]
HEADER += ["base; preset; seeds better / same / worse"]
Row = dict[str, Any]


def shown(store: Store, *, of_light: bool) -> report.Rows:
    """What runs of the base say of light cycles or of others, beside where both end.

    Correlations are medians at each of the fractions.
    """
    return [
        [
            f"{names.problem(row['problem'])}, {report.shown(row['preset'])}",
            *(_said(row, name) for name in ("gradient_correlation", "reliability")),
            _ends(*(store.load(row["problem"], row[arm]) for arm in ("base", "preset"))),
        ]
        for row in measure.load(NAME)["rows"]
        if (row["preset"] == LIGHT) == of_light
    ]


def _said(row: Row, name: str) -> str:
    found = [at[name] for at in row["at"]]
    return ", ".join("none" if one is None else f"{one['median']:.2f}" for one in found)


def _ends(alone: Record, evolved: Record) -> str:
    """The medians of both, the winner's bold, and the seeds."""
    both = [report.scores(record) for record in (alone, evolved)]
    paired = report.compared(both[1], both[0])
    medians = report.medians((float(np.median(one)) for one in both), paired)
    return beside(*medians, report.counts(paired))


def rows_of(problem: Problem, store: Store, *, seeds: int = SEEDS) -> list[Row]:
    """A row for each base of a problem and the preset around it that were tuned there."""
    found = []
    for base, preset in arms_of(problem):
        alone, evolved = (store.load(problem.name, name) for name in (base, preset))
        if "settings" in alone and "settings" in evolved:
            found.append(_row(problem, base, preset, alone, evolved, seeds))
    return found


def _row(problem: Problem, base: str, preset: str, alone: Row, evolved: Row, seeds: int) -> Row:
    said = [
        _at(problem, base, preset, alone["settings"], evolved["settings"], fraction, seeds)
        for fraction in FRACTIONS
    ]
    return {
        "problem": problem.name,
        "kind": problem.kind,
        "base": base,
        "preset": preset,
        "at": [
            {"fraction": fraction, **{name: _spread(values) for name, values in one.items()}}
            for fraction, one in zip(FRACTIONS, said, strict=True)
        ],
    }


def _at(
    problem: Problem,
    base: str,
    preset: str,
    alone: dict[str, Any],
    evolved: dict[str, Any],
    fraction: float,
    seeds: int,
) -> dict[str, np.ndarray]:
    """The diagnoses of some seeds, each over some batches.

    They are of the base's run, at a fraction of what of it the preset would have cycles in.
    """
    objective, unit = objective_of(problem, base), unit_of(problem, preset)
    total = ledger.descent(problem).steps_within(problem.budget)

    def one(key: jax.Array) -> Diagnosis:
        keys, data = streams(key), problem.train
        steps = int(fraction * end_of(preset) * total)
        optimizer = adam(alone, total, keys.noise)
        params = descend(problem, objective, optimizer, keys, data, steps)
        return ask(problem, objective, params, evolved, fraction, unit, keys, data, REPEATS)

    keys = jax.vmap(jax.random.key)(jnp.arange(FIRST_SEED, FIRST_SEED + seeds))
    found = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    # Over the batches of a seed; pairs that all tie say nothing.
    means = {name: np.nanmean(values, axis=1) for name, values in found._asdict().items()}
    # One dummy sample is every batch of a function.
    return means if problem.kind != "global" else {**means, "reliability": np.full(seeds, np.nan)}


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Median and quartiles over the seeds, None where nothing is told."""
    if np.isnan(values).all():
        return None
    low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def save(rows: list[Row], order: list[str]) -> None:
    """Writes the rows over those of the same problems and presets, and keeps all others.

    Args:
        rows: some rows.
        order: names of all problems, as they are to stand in the file.
    """
    asked = {(row["problem"], row["preset"]) for row in rows}
    kept = measure.load(NAME)["rows"]
    others = [row for row in kept if (row["problem"], row["preset"]) not in asked]
    together = sorted([*others, *rows], key=lambda row: order.index(row["problem"]))
    measure.save(NAME, together, seeds=SEEDS, batches=REPEATS, pairs=PAIRS)
