"""A training set of which a part misleads."""

import jax.numpy as jnp
import numpy as np

from benchmarks.quality.problem import Problem
from benchmarks.quality.problems import layers, samples

SEED = 2021
SHARE = 0.3


def label_noise() -> Problem:
    """Digits, 2,410 parameters; 30% of the training labels are redrawn from all ten.

    So 27% of them are wrong, on average. Validation and test labels are clean: methods that
    are tuned or stopped on validation know more than those that only train.
    """
    splits = samples.digits()
    objective = samples.measured(layers.forward, samples.cross_entropy)
    return Problem(
        name="label_noise",
        kind="noise",
        init=layers.perceptron(64, 32, 10),
        loss=objective,
        fitness=objective,
        straight_through=None,
        score=samples.measured(layers.forward, samples.error),
        **splits._replace(train=redraw(splits.train))._asdict(),
        batch_size=32,
        budget=600_000,
    )


def redraw(split: samples.Samples) -> samples.Samples:
    """The same images, a fixed 30% of them with a random digit."""
    rng = np.random.default_rng(SEED)
    labels = np.array(split.targets)
    rows = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    labels[rows] = rng.integers(10, size=len(rows))
    return split._replace(targets=jnp.asarray(labels))
