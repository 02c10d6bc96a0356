"""A program of two phases: gradients on a loss, then a few generations on the metric itself.

    python -m examples.finish

A logistic regression finds a class of one in twelve. Adam lowers the cross-entropy for nine tenths
of the compute, with a schedule that ends there. Four generations without a gradient then lower the
balanced error on all training samples. Plain Adam gets as much compute: the forward pass of a
sample costs 1, its gradient 3. The lines say what both reach on new samples.
"""

import argparse
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax import Execution, evolve, presets

FEATURES, SAMPLES, BATCH, RARE = 16, 1024, 64, 1 / 12
FORWARDS_PER_GRADIENT = 3
GENERATIONS, MEMBERS = 4, 16
# The finish is a tenth of the compute.
FINISH = GENERATIONS * MEMBERS * SAMPLES
STEPS = 9 * FINISH // (FORWARDS_PER_GRADIENT * BATCH)
Params = dict[str, jax.Array]


class Samples(NamedTuple):
    """Labelled samples.

    Attributes:
        inputs: float32 `[n, FEATURES]`.
        rare: bool `[n]`, whether they are of the rare class.
    """

    inputs: jax.Array
    rare: jax.Array


def samples_of(key: jax.Array, count: int) -> Samples:
    """Two clouds that overlap."""
    labels, noise = jax.random.split(key)
    rare = jax.random.bernoulli(labels, RARE, (count,))
    return Samples(jax.random.normal(noise, (count, FEATURES)) + 0.5 * rare[:, None], rare)


def logits(params: Params, inputs: jax.Array) -> jax.Array:
    """Above zero for the rare class, `[n]`."""
    return inputs @ params["weights"] + params["bias"]


def loss(params: Params, batch: Samples) -> jax.Array:
    """The cross-entropy, which a gradient can follow."""
    found = logits(params, batch.inputs)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(found, batch.rare))


def balanced_error(params: Params, batch: Samples) -> jax.Array:
    """The mean of the error rates of both classes: each counts as much, however rare it is."""
    wrong = (logits(params, batch.inputs) > 0) != batch.rare
    return (jnp.mean(wrong, where=batch.rare) + jnp.mean(wrong, where=~batch.rare)) / 2


def trained(params: Params, data: Samples, key: jax.Array, steps: int) -> Params:
    """The first phase: Adam, whose schedule ends with its last step."""
    tx = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(at: jax.Array, carry: Any) -> Any:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, at), (BATCH,), 0, SAMPLES)
        batch = Samples(data.inputs[rows], data.rare[rows])
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return lax.fori_loop(0, steps, step, (params, tx.init(params)))[0]


def finished(params: Params, data: Samples, key: jax.Array) -> Params:
    """The second phase: generations on the metric, without a gradient, on all samples."""
    tx = evolve(
        optax.set_to_zero(),
        key=key,
        execution=Execution(candidate_batch_size=MEMBERS),
        **presets.finish(GENERATIONS, population_size=MEMBERS),
    )

    def value_fn(params: Params) -> jax.Array:
        return balanced_error(params, data)

    def step(_: jax.Array, carry: Any) -> Any:
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=value_fn, evolve=True)
        return optax.apply_updates(params, updates), state

    return lax.fori_loop(0, GENERATIONS, step, (params, tx.init(params)))[0]


@jax.jit
def run(key: jax.Array) -> dict[str, jax.Array]:
    """The balanced error on new samples, at equal compute."""
    of_data, of_batches, of_noise, of_test = jax.random.split(key, 4)
    data, new = samples_of(of_data, SAMPLES), samples_of(of_test, 20_000)
    start = {"weights": jnp.zeros(FEATURES), "bias": jnp.zeros([])}
    more = FINISH // (FORWARDS_PER_GRADIENT * BATCH)
    alone = trained(start, data, of_batches, STEPS + more)
    both = finished(trained(start, data, of_batches, STEPS), data, of_noise)
    return {"adam": balanced_error(alone, new), "adam, finish": balanced_error(both, new)}


def main() -> None:
    """Prints the median over seeds, and on how many the finish is better."""
    parser = argparse.ArgumentParser(prog="python -m examples.finish", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three seeds in place of thirty")
    seeds = 3 if parser.parse_args().quick else 30
    found = lax.map(run, jax.random.split(jax.random.key(0), seeds))
    for way, errors in found.items():
        print({"way": way, "balanced error": round(float(np.median(errors)), 4)})
    better = int(jnp.sum(found["adam, finish"] < found["adam"]))
    print({"seeds": seeds, "better with a finish": better})


if __name__ == "__main__":
    main()
