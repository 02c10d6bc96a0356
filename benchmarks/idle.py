"""A step without a cycle, over the same step of the base optimizer alone."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from benchmarks import measure, models
from egd_optax import evolve

SIZES = {**models.SIZES, "30M": 3 * 10**7}
SAMPLES = {"memory-bound": 16, "compute-bound": 512}
BASES = {"sgd": lambda: optax.sgd(1e-3), "adamw": lambda: optax.adamw(1e-4)}
# Floating-point operations of a run: of many steps where they are short, for a training loop does
# not wait for one before it starts the next.
OPERATIONS = 2.5e10
NEVER = 10**6  # steps between cycles: none is due while we measure


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for label, parameters in list(SIZES.items())[: 1 if quick else None]:
        for bound, samples in SAMPLES.items():
            for base in BASES:
                yield (
                    f"{base}, {label}, {bound}",
                    lambda a=(label, parameters, bound, samples, base): measure_case(*a),
                )


def measure_case(
    label: str, parameters: int, bound: str, samples: int, base: str
) -> list[dict[str, Any]]:
    """One row for the base alone, in the graph, and decided when the step is traced."""
    problem = models.perceptron(parameters, samples)
    runs = {
        name: measure.loop(*step, steps=max(1, round(OPERATIONS / (6 * parameters * samples))))
        for name, step in programs(BASES[base](), problem).items()
    }
    timings = measure.compare(runs, "base", rounds=15)
    about = {"base": base, "size": label, "bound": bound, "samples": samples}
    about["parameters"] = models.size(problem.params)
    return [{**about, "form": name, **timing} for name, timing in timings.items()]


def programs(base: optax.GradientTransformation, problem: models.Problem) -> dict[str, Any]:
    """The donated train steps that are compared, each with the state that it starts from."""
    evolving = evolve(base, evolve_every=NEVER, population_size=8)
    return {
        "base": train_step(base, problem),
        "in graph": train_step(evolving, problem),
        "evolve=False": train_step(evolving, problem, evolve=False),
    }


def train_step(
    tx: optax.GradientTransformation, problem: models.Problem, **update_args: Any
) -> tuple[Any, Any]:
    """A jitted step of parameters and state, which it donates, and those to start from."""
    tx = optax.with_extra_args_support(tx)

    def value_fn(params: Any) -> jax.Array:
        return problem.loss(params, problem.batch)

    def step(carry: Any) -> Any:
        params, state = carry
        grads = jax.grad(problem.loss)(params, problem.batch)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **update_args)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=0), (problem.params, tx.init(problem.params))
