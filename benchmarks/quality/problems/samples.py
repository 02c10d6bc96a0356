"""Samples, their splits, and what is measured on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import benchmarks.quality.digits
from benchmarks.quality.problem import Objective

# Maps parameters and inputs, samples first, to what is predicted for each sample.
Network = Callable[[Any, jax.Array], jax.Array]
Measure = Callable[[jax.Array, jax.Array], jax.Array]


class Samples(NamedTuple):
    """Inputs and what is to be predicted, `[n, ...]` each."""

    inputs: jax.Array
    targets: jax.Array


class Splits(NamedTuple):
    """The three splits, the same for all seeds."""

    train: Samples
    validation: Samples
    test: Samples


def digits() -> Splits:
    """Real digits, 8 x 8 pixels from 0 to 1: 897 to train on, 450 and 450 held out."""
    return Splits(*(Samples(*split) for split in benchmarks.quality.digits.load()))


def split(inputs: np.ndarray, targets: np.ndarray, held_out: int) -> Splits:
    """Splits samples that are in random order: test, validation, and the rest to train on.

    Args:
        inputs: `[n, ...]`.
        targets: `[n]`, integers for classes, else floats.
        held_out: samples of the validation split, and of the test split.
    """
    kind = jnp.int32 if np.issubdtype(targets.dtype, np.integer) else jnp.float32
    cuts = [held_out, 2 * held_out]
    parts = zip(np.split(inputs, cuts), np.split(targets, cuts), strict=True)
    test, validation, train = (
        Samples(jnp.asarray(x, jnp.float32), jnp.asarray(y, kind)) for x, y in parts
    )
    return Splits(train, validation, test)


def measured(network: Network, measure: Measure) -> Objective:
    """The objective that measures a network's predictions on a batch."""
    return lambda params, batch: measure(network(params, batch.inputs), batch.targets)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `[n, classes]`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of samples whose largest logit is not that of their class."""
    return jnp.mean(jnp.argmax(logits, axis=-1) != labels)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error of predictions `[n]`."""
    return jnp.mean((predictions - targets) ** 2)
