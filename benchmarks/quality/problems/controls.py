"""Problems on which gradients do the job and no gain is expected."""

from collections.abc import Callable
import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes, make_friedman1

from benchmarks.quality.problem import Objective, Params, Problem
from benchmarks.quality.problems import layers, samples

SEED = 2021
BITS = 6
SEQUENCE = 30
HIDDEN = 24


def friedman() -> Problem:
    """Regression of a smooth function of five of ten inputs and noise; 385 parameters.

    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.make_friedman1.html.
    The noise is 4% of the variance: no score is lower but by chance.
    """
    inputs, targets = make_friedman1(4_000, noise=1.0, random_state=SEED)
    init = layers.perceptron(10, 32, 1)
    return regression("friedman", standardised(inputs, targets, 1_000), init)


def diabetes() -> Problem:
    """Regression on 442 patients; 97 parameters.

    https://scikit-learn.org/stable/datasets/toy_dataset.html#diabetes-dataset.
    """
    inputs, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(targets))
    init = layers.perceptron(10, 8, 1)
    splits = standardised(inputs[order], targets[order], 110)
    # Few steps: with more, 222 samples are learnt by heart, and whatever slows that down wins.
    return regression("diabetes", splits, init, budget=60_000)


def rnn_adding() -> Problem:
    """A recurrent network adds the two marked numbers of 30; 673 parameters.

    Hochreiter and Schmidhuber 1997, "Long short-term memory",
    https://doi.org/10.1162/neco.1997.9.8.1735, section 5.4.
    """
    splits = adding(4_000, 1_000)
    return regression("rnn_adding", splits, recurrent, forward_recurrent, budget=200_000)


def parity() -> Problem:
    """The parity of 6 bits, all 64 of which are every split; 129 parameters."""
    bits = np.array(list(itertools.product([0, 1], repeat=BITS)))
    table = samples.Samples(
        jnp.asarray(2 * bits - 1, jnp.float32), jnp.asarray(bits.sum(axis=1) % 2, jnp.int32)
    )

    def logistic(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))

    def error(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.mean((logits > 0) != targets)

    return control(
        "parity",
        samples.Splits(table, table, table),
        layers.perceptron(BITS, 16, 1),
        samples.measured(layers.forward_scalar, logistic),
        samples.measured(layers.forward_scalar, error),
        success=0.0,
    )


def regression(
    name: str,
    splits: samples.Splits,
    init: Callable[[jax.Array], Params],
    network: samples.Network = layers.forward_scalar,
    budget: int = 600_000,
) -> Problem:
    """Regression on targets of variance 1: the score of predicting their mean is 1."""
    objective = samples.measured(network, samples.squared_error)
    return control(name, splits, init, objective, objective, budget)


def control(
    name: str,
    splits: samples.Splits,
    init: Callable[[jax.Array], Params],
    loss: Objective,
    score: Objective,
    budget: int = 600_000,
    success: float | None = None,
) -> Problem:
    """A problem whose loss is the best fitness known."""
    return Problem(
        name=name,
        kind="control",
        init=init,
        loss=loss,
        fitness=loss,
        straight_through=None,
        score=score,
        **splits._asdict(),
        batch_size=32,
        budget=budget,
        success=success,
    )


def standardised(inputs: np.ndarray, targets: np.ndarray, held_out: int) -> samples.Splits:
    """Splits, with the mean and variance of the training split at 0 and 1."""

    def scale(values: np.ndarray) -> np.ndarray:
        train = values[2 * held_out :]
        return np.asarray((values - train.mean(axis=0)) / train.std(axis=0))

    return samples.split(scale(inputs), scale(targets), held_out)


def adding(train: int, held_out: int) -> samples.Splits:
    """Sequences `[n, 30, 2]` of a number from 0 to 1 and a mark, one in either half.

    The target is the sum of the marked numbers, standardised: mean 1 and variance 1/6.
    """
    rng = np.random.default_rng(SEED)
    size = train + 2 * held_out
    numbers, marks = rng.uniform(size=[size, SEQUENCE]), np.zeros([size, SEQUENCE])
    for low, high in [(0, SEQUENCE // 2), (SEQUENCE // 2, SEQUENCE)]:
        marks[np.arange(size), rng.integers(low, high, size)] = 1
    sums = np.sum(numbers * marks, axis=1)
    return samples.split(np.stack([numbers, marks], axis=-1), (sums - 1) * 6**0.5, held_out)


def recurrent(key: jax.Array) -> Params:
    """Draws a recurrent layer, orthogonal over time, and an output."""
    inputs, hidden, output = jax.random.split(key, 3)
    return {
        "input": layers.dense(inputs, 2, HIDDEN),
        "hidden": jax.nn.initializers.orthogonal()(hidden, (HIDDEN, HIDDEN)),
        "output": layers.dense(output, HIDDEN, 1),
    }


def forward_recurrent(params: Params, inputs: jax.Array) -> jax.Array:
    """The output after the last of `[n, 30, 2]` inputs, `[n]`."""
    currents = layers.apply(params["input"], inputs).swapaxes(0, 1)

    def step(state: jax.Array, current: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(current + state @ params["hidden"]), None

    state, _ = lax.scan(step, jnp.zeros_like(currents[0]), currents)
    return layers.apply(params["output"], state)[:, 0]
