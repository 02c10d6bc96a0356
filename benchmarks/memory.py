"""Device memory of a train step that evolves, from the compiled program, over the parameters.

On CPU "host" and "device" are the same program. What "host" does on an accelerator is
compiled ahead of time, see `aot/`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from benchmarks import idle, models
from egd_optax import Execution, evolve, recombine

SAMPLES = 8
MEMORY = ("device", "replay")


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    yield "steps without a cycle", measure_idle
    for population in (4, 16, 64, 256)[: 2 if quick else None]:
        yield (f"population {population}", lambda p=population: measure_population(p))


def measure_idle() -> list[dict[str, Any]]:
    """A row for each form of a step without a cycle, with what its program does to matrices.

    What the loop around a cycle carries exists as a whole: all gradients at once, where the
    base alone applies one and frees it. It is passed through in place.
    """
    problem = models.perceptron(10**6, SAMPLES)
    (shape,) = {leaf.shape for leaf in jax.tree.leaves(problem.params) if leaf.ndim == 2}
    matrix = f"f32[{shape[0]},{shape[1]}]"
    rows = []
    for form, (step, start) in idle.programs(optax.sgd(1e-3), problem).items():
        compiled = step.lower(start).compile()
        entry = compiled.as_text().split("ENTRY ")[1].splitlines()
        rows.append(
            {
                "form": form,
                "temp_over_params": temp_over_params(compiled, problem),
                "matrices": models.LAYERS,
                "carried": _passing(entry, "while", matrix),
                "through_conditionals": _passing(entry, "conditional", matrix),
                "copies": sum(f"= {matrix}" in line and " copy(" in line for line in entry),
            }
        )
    return rows


def measure_population(population: int) -> list[dict[str, Any]]:
    """A row for each memory mode and number of elites, and one for a vmapped population."""
    problem = models.perceptron(10**6, SAMPLES)
    rows = []
    for elites in sorted({1, -(-population // 4), population // 2}):
        for memory in MEMORY:
            if memory == "device" and elites > 32:
                continue  # k whole buffers, each with its own branch: minutes to compile
            tx = evolve(
                optax.sgd(1e-3),
                evolve_every=1,
                population_size=population,
                recombine=recombine.mean(elite_fraction=elites / population),
                execution=Execution(memory=memory),
            )
            temporary = temp_over_params(compiled_step(tx, problem), problem)
            rows.append({"method": memory, "elites": elites, "temp_over_params": temporary})
    plain = temp_over_params(compiled_step(optax.sgd(1e-3), problem), problem)
    rows.append({"method": "plain SGD", "elites": 0, "temp_over_params": plain})
    whole = vmapped(problem, population)
    rows.append({"method": "vmapped", "elites": 0, "temp_over_params": whole})
    return [{"population": population, **row} for row in rows]


def vmapped(problem: models.Problem, population: int) -> float:
    """Bytes over the parameters of drawing a whole population and scoring it under vmap."""

    def scores(params: Any, key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        drawn = [
            leaf + 0.02 * jax.random.normal(jax.random.fold_in(key, at), (population, *leaf.shape))
            for at, leaf in enumerate(leaves)
        ]
        members = jax.tree.unflatten(treedef, drawn)
        fitness = jax.vmap(problem.loss, in_axes=(0, None))(members, problem.batch)
        return members, fitness  # kept to be recombined

    analysis = jax.jit(scores).lower(problem.params, jax.random.key(0)).compile().memory_analysis()
    held = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    return held / (4 * models.size(problem.params))


def compiled_step(tx: optax.GradientTransformation, problem: models.Problem) -> jax.stages.Compiled:
    """A compiled train step."""
    step, start = idle.train_step(tx, problem)
    return step.lower(start).compile()


def temp_over_params(compiled: jax.stages.Compiled, problem: models.Problem) -> float:
    """Temporary memory of a program, over the parameters."""
    temporary: int = compiled.memory_analysis().temp_size_in_bytes
    return temporary / (4 * models.size(problem.params))


def _passing(entry: list[str], opcode: str, matrix: str) -> int:
    """How many matrices the instructions of a kind return."""
    returned = (line.split(f" {opcode}(")[0] for line in entry if f" {opcode}(" in line)
    return sum(shapes.count(matrix) for shapes in returned)
