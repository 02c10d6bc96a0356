"""The data, scikit-learn's embedded digits, and a small network for it."""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

Params = Any

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


class Network(nn.Module):
    """64 pixels -> 32 hidden units -> 10 logits, 2,410 parameters."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, `[n, 10]`."""
        hidden = nn.relu(nn.Dense(32)(images))
        return nn.Dense(10)(hidden)


class Score(NamedTuple):
    """How well parameters do on a split; two scalars.

    Attributes:
        error: share of images that get the wrong digit.
        loss: mean cross-entropy.
    """

    error: jax.Array
    loss: jax.Array


def load() -> Digits:
    """Loads the digits, shuffled and split."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    test, validation, train = np.split(order, [TEST_SIZE, TEST_SIZE + VALIDATION_SIZE])

    def split(rows: np.ndarray) -> Split:
        pixels = jnp.asarray(images[rows] / 16, jnp.float32)
        return Split(pixels, jnp.asarray(labels[rows], jnp.int32))

    return Digits(split(train), split(validation), split(test))


def sample(split: Split, key: jax.Array, size: int) -> Split:
    """Draws `size` images with replacement."""
    rows = jax.random.randint(key, (size,), 0, len(split.labels))
    return Split(split.images[rows], split.labels[rows])


def init(key: jax.Array) -> Params:
    """Draws the initial parameters."""
    return Network().init(key, jnp.zeros([1, 64]))


def loss(params: Params, split: Split) -> jax.Array:
    """Mean cross-entropy."""
    return score(params, split).loss


def score(params: Params, split: Split) -> Score:
    """Error and loss of the parameters as they are."""
    logits = Network().apply(params, split.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    wrong = jnp.argmax(logits, axis=-1) != split.labels
    return Score(jnp.mean(wrong), jnp.mean(losses))
