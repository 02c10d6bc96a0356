"""A cycle, over its forward passes alone: what mutation costs, of full and of low rank."""

from collections.abc import Iterator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks import cycle, measure, models

POPULATION = 8
MODELS = {"perceptron": models.perceptron, "transformer": models.transformer}
SIGMA = 0.02
KINDS = ("full_rank", "low_rank")
MEMORY = ("host", "replay")
MEMBERS = "members alone"


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
    runs = {
        "forwards": forwards(problem, POPULATION + 1),
        MEMBERS: members(problem, POPULATION - 1),
    }
    for kind in KINDS:
        for memory in MEMORY:
            arguments = {"population_size": POPULATION, "noise": kind, "memory": memory}
            runs[f"{kind}, {memory}"] = cycle.cycle(problem, **arguments)
    heavy = model == "transformer" and parameters * samples > 10**8
    timings = measure.compare(runs, "forwards", rounds=5 if heavy else 11)
    about = {"model": model, "size": label, "samples": samples, "population": POPULATION}
    rows = [
        {**about, "noise": kind, "memory": memory, **timings[f"{kind}, {memory}"]}
        for kind in KINDS
        for memory in MEMORY
    ]
    return [*rows, {**about, "noise": "low_rank", "memory": MEMBERS, **timings[MEMBERS]}]


def forwards(problem: models.Problem, count: int) -> measure.Run:
    """A run of `count` forward passes of the same parameters, one after another."""

    @jax.jit
    def scores(params: Any, batch: Any) -> jax.Array:
        # Another input each time, or XLA would do the same work once.
        inputs, targets = batch
        shifts = jnp.arange(count) * 1e-3
        return lax.map(lambda shift: problem.loss(params, (inputs + shift, targets)), shifts)

    return lambda: scores(problem.params, problem.batch)


def members(problem: models.Problem, count: int) -> measure.Run:
    """A run that forms so many members of low-rank noise in one buffer, and evaluates none.

    Written in plain JAX as one would by hand: a row and a column for each matrix.
    """
    leaves = jax.tree.leaves(problem.params)

    def moved(leaf: jax.Array, key: jax.Array) -> jax.Array:
        sides = leaf.shape if leaf.ndim == 1 else (sum(leaf.shape),)
        # Or XLA would compute the numbers of the sides anew for every entry.
        noise = lax.optimization_barrier(SIGMA * jax.random.normal(key, sides))
        if leaf.ndim == 1:
            return leaf + noise
        return leaf + noise[: leaf.shape[0], None] * noise[leaf.shape[0] :]

    @jax.jit
    def form(leaves: Any) -> Any:
        def one(at: jax.Array, buffer: Any) -> Any:
            del buffer
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), at), len(leaves))
            return [moved(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]

        return lax.fori_loop(0, count, one, leaves)

    return lambda: form(leaves)
