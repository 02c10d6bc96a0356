"""A small network for the digits, and how well it does."""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.quality.digits import Split

Params = Any


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
