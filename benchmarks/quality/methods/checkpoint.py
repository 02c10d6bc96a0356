"""What `egd_optax.diagnose.diagnose` says of cycles at a checkpoint of the base's run."""

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality.methods import presets
from benchmarks.quality.methods.cycles import noise_of
from benchmarks.quality.methods.method import Settings, Streams, sample, samples, scale
from benchmarks.quality.methods.shares import LIGHT_WINDOW, on
from benchmarks.quality.problem import Batch, Objective, Params, Problem
from egd_optax.diagnose import Diagnosis, diagnose

LIGHT = "light"
# The base and the preset around it.
ARMS = (
    ("straight_through", "metric_on_straight_through"),
    ("adam", "metric"),
    ("adam", "global_"),
    ("straight_through", LIGHT),
    ("adam", LIGHT),
)
PAIRS = 20


def arms_of(problem: Problem) -> list[tuple[str, str]]:
    """Those of a problem: light cycles are around what a user would descend on, and only that."""
    return [(base, preset) for base, preset in ARMS if preset != LIGHT or on(base, problem)]


def end_of(preset: str) -> float:
    """The part of a run after which a preset has no cycle."""
    return LIGHT_WINDOW[1] if preset == LIGHT else 1.0


def objective_of(problem: Problem, base: str) -> Objective:
    """What a base descends on."""
    objective = problem.straight_through if base == "straight_through" else problem.loss
    assert objective is not None
    return objective


def unit_of(problem: Problem, preset: str) -> float | None:
    """What sigma is a multiple of in a preset whose noise is not relative; else None."""
    return scale(problem) if preset == "global_" else None


def ask(
    problem: Problem,
    objective: Objective,
    params: Params,
    settings: Settings,
    fraction: float,
    unit: float | None,
    keys: Streams,
    data: Batch,
    batches: int,
) -> Diagnosis:
    """The diagnoses of some parameters on so many batches, `[batches]` each.

    Args:
        problem: the problem.
        objective: what the base descends on.
        params: where it stands.
        settings: those of the preset, which says how much noise and how many samples.
        fraction: of the part with cycles of the preset's run; sigma is that of it.
        unit: from `unit_of`, outside of jit.
        keys: of the run.
        data: what batches are drawn from.
        batches: how many.
    """
    size = samples(problem, settings)

    def one(at: jax.Array) -> Diagnosis:
        key = jax.random.fold_in(keys.fitness, at)
        batch, other = (sample(data, key, size) for key in jax.random.split(key))
        return diagnose(
            lambda params: problem.fitness(params, batch), params,
            jax.grad(objective)(params, batch),
            other_value_fn=lambda params: problem.fitness(params, other),
            pairs=PAIRS, sigma=_sigma(settings, fraction, unit),
            noise=noise_of(settings, relative=unit is None), key=jax.random.key_data(key),
        )  # fmt: skip

    found: Diagnosis = lax.map(one, jnp.arange(batches))
    return found


def _sigma(settings: Settings, fraction: float, unit: float | None) -> jax.typing.ArrayLike:
    """The sigma of a preset at a fraction of the part of its run with cycles."""
    sigma: jax.typing.ArrayLike = settings["sigma"]
    if unit is not None:
        return unit * sigma * presets.NEAR**fraction
    if settings["decay"]:
        return optax.cosine_decay_schedule(sigma, 1, presets.FLOOR)(fraction)
    return sigma
