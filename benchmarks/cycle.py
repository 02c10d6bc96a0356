"""A cycle, over the least it can cost: its forward passes and its draws and nothing else."""

from collections.abc import Iterator
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks import measure, models
from egd_optax import Execution, evolve
from egd_optax.backend import random

SAMPLES = 64
MEMORY = ("host", "device", "replay")
BATCHES = (1, 2, 4, 8, 16)


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    sizes = list(models.SIZES.items())[: 1 if quick else None]
    for label, parameters in sizes:
        for population in (4, 16, 64)[: 1 if quick else None]:
            yield (
                f"memory modes, {label}, population {population}",
                lambda a=(label, parameters, population): measure_modes(*a),
            )
    for label, parameters in sizes:
        yield (
            f"candidate_batch_size, {label}",
            lambda a=(label, parameters): measure_batches(*a),
        )


def measure_modes(label: str, parameters: int, population: int) -> list[dict[str, Any]]:
    """A row for each memory mode, over the floor; replay has a floor with its own draws."""
    problem = models.perceptron(parameters, SAMPLES)
    elites = -(-population // 4)
    runs = {
        "floor": floor(problem, population, draws=population - 1),
        "floor of replay": floor(problem, population, draws=population - 1 + elites),
        **{
            memory: cycle(problem, population_size=population, execution=Execution(memory=memory))
            for memory in MEMORY
        },
    }
    rounds = 15 if parameters * population < 10**8 else 5
    pairs = {"host": "floor", "device": "floor", "replay": "floor of replay"}
    rows = []
    for memory, reference in pairs.items():
        pair = {reference: runs[reference], memory: runs[memory]}
        timing = measure.compare(pair, reference, rounds)[memory]
        about = {"case": "memory", "memory": memory, "size": label, "population": population}
        rows.append({**about, "samples": SAMPLES, "floor": reference, **timing})
    return rows


def measure_batches(label: str, parameters: int) -> list[dict[str, Any]]:
    """A row for each `candidate_batch_size`: time over that of 1, and memory."""
    problem, population = models.perceptron(parameters, SAMPLES), 16
    programs = {
        size: program(
            problem,
            population_size=population,
            execution=Execution(candidate_batch_size=size),
        )
        for size in BATCHES
    }
    runs = {str(size): functools.partial(*called) for size, called in programs.items()}
    timings = measure.compare(runs, "1", rounds=9)
    rows = []
    for size, (compiled, *_) in programs.items():
        temporary = compiled.memory_analysis().temp_size_in_bytes
        about = {"case": "batch", "candidate_batch_size": size, "size": label}
        rows.append(
            {
                **about,
                "population": population,
                "samples": SAMPLES,
                "temp_over_params": temporary / (4 * models.size(problem.params)),
                **timings[str(size)],
            }
        )
    return rows


def cycle(problem: models.Problem, **kwargs: Any) -> measure.Run:
    """A run of one `update` with a cycle."""
    return functools.partial(*program(problem, **kwargs))


def program(problem: models.Problem, **kwargs: Any) -> tuple[jax.stages.Compiled, Any, Any]:
    """The compiled `update` that always evolves, around a base that does nothing.

    Returns:
        The program, and the parameters and the state that it takes.
    """
    tx = evolve(optax.identity(), evolve_every=1, **kwargs)

    def update(params: Any, state: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        value_fn = lambda params: problem.loss(params, problem.batch)  # noqa: E731
        return tx.update(zeros, state, params, value_fn=value_fn)

    state = tx.init(problem.params)
    return jax.jit(update).lower(problem.params, state).compile(), problem.params, state


def floor(problem: models.Problem, population: int, draws: int) -> measure.Run:
    """A run of `population + 1` forward passes, `draws` of which are on mutated parameters.

    Written in plain JAX as one would by hand, but for the generator, which is the one of the
    cycle; it keeps the fitness and no member. Draws beyond the forward passes are those that
    replay makes again.
    """
    stds = [0.02 * jnp.sqrt(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(problem.params)]

    def mutant(params: Any, key: jax.Array, draw: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        drawn = [
            leaf + std * random.normals_of(random.derive(key, 0, at), draw, 0, leaf.shape)
            for at, (leaf, std) in enumerate(zip(leaves, stds, strict=True))
        ]
        return jax.tree.unflatten(treedef, drawn)

    @jax.jit
    def scores(params: Any, key: jax.Array) -> jax.Array:
        members, batch, first = jnp.arange(draws), problem.batch, population - 1

        def score(member: jax.Array) -> jax.Array:
            return problem.loss(mutant(params, key, member), batch)

        drawn = lax.map(score, members[:first])
        # For the child other inputs, or XLA would evaluate the parent once for both.
        other = (batch[0] + 1e-3, batch[1])
        unmutated = problem.loss(params, batch), problem.loss(params, other)

        def again(total: Any, member: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, mutant(params, key, member)), None

        if draws > first:
            total, _ = lax.scan(again, params, members[first:])
            return drawn, unmutated, total
        return drawn, unmutated

    return lambda: scores(problem.params, jnp.array([0, 1], jnp.uint32))
