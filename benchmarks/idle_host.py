"""A step without a cycle whose `value_fn` would call Python, over the base optimizer's alone."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import idle, measure, models
from egd_optax import callback, evolve

SIZES = {"10k": 10**4, "1M": 10**6}
SAMPLES = 16
STEPS = 500


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for label, parameters in list(SIZES.items())[: 1 if quick else None]:
        yield label, lambda a=(label, parameters): measure_case(*a)


def measure_case(label: str, parameters: int) -> list[dict[str, Any]]:
    """One row for the base alone, and for each way to have cycles that are not due."""
    problem = models.perceptron(parameters, SAMPLES)
    steps = idle.programs(optax.sgd(1e-3), problem)
    evolving = evolve(optax.sgd(1e-3), evolve_every=idle.NEVER, population_size=8)
    steps["host function"] = train_step(evolving, problem)
    runs = {name: measure.loop(*step, steps=STEPS) for name, step in steps.items()}
    timings = measure.compare(runs, "base", rounds=15)
    about = {"size": label, "samples": SAMPLES, "parameters": models.size(problem.params)}
    return [{**about, "form": name, "steps": STEPS, **timing} for name, timing in timings.items()]


def train_step(tx: optax.GradientTransformationExtraArgs, problem: models.Problem) -> Any:
    """A jitted step with a `value_fn` of NumPy, and what it starts from.

    JAX dispatches a program that calls back in another way, on steps without a cycle too.
    """
    value_fn = callback.host_value_fn(lambda params: float(np.square(params[0]["w"]).mean()))

    def step(carry: Any) -> Any:
        params, state = carry
        grads = jax.grad(problem.loss)(params, problem.batch)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=0), (problem.params, tx.init(problem.params))
