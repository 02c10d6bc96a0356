"""A cycle, over its forward passes alone: what mutation costs, of full and of low rank."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks import cycle, measure, models
from egd_optax import Execution, noise

POPULATION = 8
MODELS = {"perceptron": models.perceptron, "transformer": models.transformer}
# By their names in the results.
KINDS: dict[str, Callable[..., noise.Noise]] = {
    "full_rank": noise.gaussian,
    "low_rank": noise.low_rank,
}
MEMORY = ("host", "replay")


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for model in MODELS:
        for label, parameters in list(models.SIZES.items())[: 1 if quick else None]:
            # 512 samples of the larger transformer take minutes a cycle on a small CPU.
            samples_of = (16, 64) if (model, label) == ("transformer", "10M") else (16, 64, 512)
            for samples in samples_of[: 1 if quick else None]:
                yield (
                    f"{model}, {label}, {samples} samples",
                    lambda a=(model, label, parameters, samples): measure_kinds(*a),
                )


def measure_kinds(model: str, label: str, parameters: int, samples: int) -> list[dict[str, Any]]:
    """A row for either kind of noise, with the elites in buffers and replayed."""
    problem = MODELS[model](parameters, samples)
    runs = {"forwards": forwards(problem, POPULATION + 1)}
    for kind, make in KINDS.items():
        for memory in MEMORY:
            runs[f"{kind}, {memory}"] = cycle.cycle(
                problem,
                population_size=POPULATION,
                noise=make(),
                execution=Execution(memory=memory),
            )
    heavy = model == "transformer" and parameters * samples > 10**8
    timings = measure.compare(runs, "forwards", rounds=5 if heavy else 11)
    about = {"model": model, "size": label, "samples": samples, "population": POPULATION}
    return [
        {**about, "noise": kind, "memory": memory, **timings[f"{kind}, {memory}"]}
        for kind in KINDS
        for memory in MEMORY
    ]


def forwards(problem: models.Problem, count: int) -> measure.Run:
    """A run of `count` forward passes of the same parameters, one after another."""

    @jax.jit
    def scores(params: Any, batch: Any) -> jax.Array:
        # Another input each time, or XLA would do the same work once.
        inputs, targets = batch
        shifts = jnp.arange(count) * 1e-3
        return lax.map(lambda shift: problem.loss(params, (inputs + shift, targets)), shifts)

    return lambda: scores(problem.params, problem.batch)
