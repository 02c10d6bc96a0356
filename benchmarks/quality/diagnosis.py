"""What `egd_optax.diagnose` says during runs of the base alone, beside who wins in the end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.quality import ledger, report, statistics
from benchmarks.quality.methods.cycles import noise_of
from benchmarks.quality.methods.deciding import sigma_at, unit_of
from benchmarks.quality.methods.gradient import adam, descend
from benchmarks.quality.methods.method import sample, samples, streams
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Store
from benchmarks.quality.runner import FIRST_SEED
from egd_optax import Diagnosis, diagnose

NAME = "diagnosis"
FRACTIONS = (0.1, 0.5, 0.9)
SEEDS, REPEATS, PAIRS = 10, 8, 20
# The base and the preset around it.
ARMS = (
    ("straight_through", "metric_on_straight_through"),
    ("adam", "metric"),
    ("adam", "global_"),
)
Row = dict[str, Any]


def rows_of(problem: Problem, store: Store, *, seeds: int = SEEDS) -> list[Row]:
    """A row for each base of a problem and the preset around it that were tuned there."""
    found = []
    for base, preset in ARMS:
        alone, evolved = (store.load(problem.name, name) for name in (base, preset))
        if "settings" in alone and "settings" in evolved:
            found.append(_row(problem, base, preset, alone, evolved, seeds))
    return found


def _row(problem: Problem, base: str, preset: str, alone: Row, evolved: Row, seeds: int) -> Row:
    said = [
        _at(problem, base, preset, alone["settings"], evolved["settings"], fraction, seeds)
        for fraction in FRACTIONS
    ]
    theirs, ours = report.scores(alone), report.scores(evolved)
    paired = statistics.compare(ours, theirs)
    return {
        "problem": problem.name,
        "kind": problem.kind,
        "base": base,
        "preset": preset,
        "at": [
            {"fraction": fraction, **{name: _spread(values) for name, values in one.items()}}
            for fraction, one in zip(FRACTIONS, said, strict=True)
        ],
        "base_median": float(np.median(theirs)),
        "preset_median": float(np.median(ours)),
        "better": paired.better,
        "same": paired.same,
        "worse": paired.worse,
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
    """The diagnoses of some seeds, each over some batches, at a fraction of the base's run."""
    objective = problem.straight_through if base == "straight_through" else problem.loss
    assert objective is not None
    total = ledger.descent(problem).steps_within(problem.budget)
    size = samples(problem, evolved)
    unit = unit_of(problem, preset)
    sigma = float(sigma_at(evolved, fraction, unit))
    noise = noise_of(evolved, relative=unit is None)

    def one(key: jax.Array) -> Diagnosis:
        keys = streams(key)
        steps = int(fraction * total)
        optimizer = adam(alone, total, keys.noise)
        params = descend(problem, objective, optimizer, keys, problem.train, steps)

        def again(at: jax.Array) -> Diagnosis:
            key = jax.random.fold_in(keys.fitness, at)
            batch, other = (sample(problem.train, key, size) for key in jax.random.split(key))
            return diagnose(
                lambda params: problem.fitness(params, batch), params,
                jax.grad(objective)(params, batch),
                other_value_fn=lambda params: problem.fitness(params, other),
                pairs=PAIRS, sigma=sigma, noise=noise, key=jax.random.key_data(key),
            )  # fmt: skip

        return jax.lax.map(again, jnp.arange(REPEATS))

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


def save(rows: list[Row]) -> None:
    """Writes the rows with what they were measured with."""
    measure.save(NAME, rows, seeds=SEEDS, batches=REPEATS, pairs=PAIRS)
