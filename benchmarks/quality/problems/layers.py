"""Networks as plain functions of pytrees."""

from collections.abc import Callable
import itertools
from typing import Any

import jax
import jax.numpy as jnp

Layer = dict[str, jax.Array]


def dense(key: jax.Array, *shape: int) -> Layer:
    """Draws weights of that shape, outputs last, of variance 1 / inputs, and zero biases."""
    weights = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
    return {"weights": weights, "bias": jnp.zeros(shape[-1])}


def apply(layer: Layer, inputs: jax.Array) -> jax.Array:
    """An affine map of the last axis."""
    return inputs @ layer["weights"] + layer["bias"]


def perceptron(*widths: int) -> Callable[[jax.Array], list[Layer]]:
    """What draws the layers of a multilayer perceptron, from the inputs to the outputs."""

    def init(key: jax.Array) -> list[Layer]:
        keys = jax.random.split(key, len(widths) - 1)
        pairs = itertools.pairwise(widths)
        return [dense(key, *shape) for key, shape in zip(keys, pairs, strict=True)]

    return init


def forward(
    params: list[Layer],
    inputs: jax.Array,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> jax.Array:
    """The outputs of a multilayer perceptron, `[n, outputs]`."""
    for layer in params[:-1]:
        inputs = activation(apply(layer, inputs))
    return apply(params[-1], inputs)


def forward_scalar(params: list[Layer], inputs: jax.Array) -> jax.Array:
    """The only output of a multilayer perceptron, `[n]`."""
    return forward(params, inputs)[..., 0]


def convolution(layer: Layer, inputs: jax.Array) -> jax.Array:
    """A one-dimensional convolution of stride 2, zero padded.

    Args:
        layer: weights `[width, channels, outputs]`, of odd width.
        inputs: `[n, length, channels]`, of even length.

    Returns:
        `[n, length / 2, outputs]`.
    """
    width, channels, outputs = layer["weights"].shape
    length = inputs.shape[1]
    padded = jnp.pad(inputs, [(0, 0), (width // 2, width // 2), (0, 0)])
    # As a matrix product: convolutions whose kernels differ between vmapped members are slow.
    windows = jnp.concatenate(
        [padded[:, i : i + length : 2] for i in range(width)],
        axis=-1,
    )
    return windows @ layer["weights"].reshape(width * channels, outputs) + layer["bias"]


def convolutional(key: jax.Array) -> dict[str, Any]:
    """Draws a network for sequences of 40 points and 10 classes, 3,042 parameters."""
    keys = jax.random.split(key, 4)
    shapes = [(5, 1, 12), (3, 12, 20), (3, 20, 20)]
    return {
        "convolutions": [dense(key, *shape) for key, shape in zip(keys[:3], shapes, strict=True)],
        "head": dense(keys[3], 100, 10),
    }


def forward_convolutional(params: dict[str, Any], inputs: jax.Array) -> jax.Array:
    """Logits `[n, 10]` of sequences `[n, 40]`."""
    hidden = inputs[..., None]
    for layer in params["convolutions"]:
        hidden = jax.nn.relu(convolution(layer, hidden))
    return apply(params["head"], hidden.reshape(len(inputs), -1))
