"""Device memory of a train step that evolves, from the compiled program, over the parameters.

On CPU "host" and "device" are the same program. What "host" does on an accelerator is
compiled ahead of time, see `aot/`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from benchmarks import idle, models
from egd_optax import evolve

SAMPLES = 8
MEMORY = ("device", "replay")


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    yield "steps without a cycle", measure_idle
    for population in (4, 16, 64, 256)[: 2 if quick else None]:
        yield (f"population {population}", lambda p=population: measure_population(p))


def measure_idle() -> list[dict[str, Any]]:
    """A row for each form of a step without a cycle, with the copies in its program.

    What a conditional takes or returns exists as a whole: all gradients at once, where the
    base alone applies one and frees it.
    """
    problem = models.perceptron(10**6, SAMPLES)
    (shape,) = {leaf.shape for leaf in jax.tree.leaves(problem.params) if leaf.ndim == 2}
    matrix = f"f32[{shape[0]},{shape[1]}]"
    rows = []
    for form, (step, start) in idle.programs(optax.sgd(1e-3), problem).items():
        compiled = step.lower(start).compile()
        entry = compiled.as_text().split("ENTRY ")[1].splitlines()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        rows.append(
            {
                "form": form,
                "temp_over_params": temporary / (4 * models.size(problem.params)),
                "matrices": models.LAYERS,
                "returned_by_the_conditional": sum(
                    line.split(" conditional(")[0].count(matrix)
                    for line in entry
                    if " conditional(" in line
                ),
                "copies": sum(f"= {matrix}" in line and " copy(" in line for line in entry),
            }
        )
    return rows


def measure_population(population: int) -> list[dict[str, Any]]:
    """A row for each memory mode and number of elites, and one for a vmapped population."""
    problem = models.perceptron(10**6, SAMPLES)
    size = 4 * models.size(problem.params)
    rows = []
    for elites in sorted({1, -(-population // 4), population // 2}):
        for memory in MEMORY:
            if memory == "device" and elites > 32:
                continue  # k whole buffers, each with its own branch: minutes to compile
            tx = evolve(
                optax.sgd(1e-3),
                evolve_every=1,
                population_size=population,
                elite_fraction=elites / population,
                memory=memory,
            )
            temporary = _temporary(train_step(tx, problem), problem, tx)
            rows.append({"method": memory, "elites": elites, "temp_over_params": temporary / size})
    plain = optax.with_extra_args_support(optax.sgd(1e-3))
    step = _temporary(train_step(plain, problem), problem, plain)
    rows.append({"method": "plain SGD", "elites": 0, "temp_over_params": step / size})
    whole = vmapped(problem, population)
    rows.append({"method": "vmapped", "elites": 0, "temp_over_params": whole})
    return [{"population": population, **row} for row in rows]


def train_step(tx: Any, problem: models.Problem) -> Any:
    """A donated train step."""

    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(problem.loss)(params, problem.batch)
        value_fn = lambda params: problem.loss(params, problem.batch)  # noqa: E731
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


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


def _temporary(step: Any, problem: models.Problem, tx: Any) -> int:
    state = jax.eval_shape(tx.init, problem.params)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), problem.params)
    compiled = step.lower(params, state).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)
