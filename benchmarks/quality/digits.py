"""Scikit-learn's embedded digits, in the splits that the benchmark and the demo share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

# Of 1,797 images the training split gets what is left.
VALIDATION_SIZE = 450
TEST_SIZE = 450
# The split stays the same for all seeds: the test images are never seen while tuning.
SPLIT_SEED = 2021


class Split(NamedTuple):
    """Images and their digits.

    Attributes:
        images: float32 `[n, 64]`, pixels from 0 to 1.
        labels: int32 `[n]`, from 0 to 9.
    """

    images: jax.Array
    labels: jax.Array


class Digits(NamedTuple):
    """The three splits."""

    train: Split
    validation: Split
    test: Split


def load() -> Digits:
    """Loads the digits, shuffled and split."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    test, validation, train = np.split(order, [TEST_SIZE, TEST_SIZE + VALIDATION_SIZE])

    def split(rows: np.ndarray) -> Split:
        pixels = jnp.asarray(images[rows] / 16, jnp.float32)
        return Split(pixels, jnp.asarray(labels[rows], jnp.int32))

    return Digits(split(train), split(validation), split(test))
