"""The networks that costs are measured on: a perceptron, the worst case, and a transformer.

A perceptron uses every weight once a sample. Attention layers use theirs once a token, so
that their forward passes are dear beside what a cycle does to the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SIZES = {"1M": 10**6, "10M": 10**7}
LAYERS = 8
TOKENS = 32
HEADS = 8


class Problem(NamedTuple):
    """A network and random data.

    Attributes:
        params: list of a dict of float32 arrays for every layer.
        batch: inputs and targets, float32, samples first.
        loss: maps parameters and a batch to a float32 scalar.
    """

    params: list[dict[str, jax.Array]]
    batch: tuple[jax.Array, jax.Array]
    loss: Callable[..., jax.Array]


def perceptron(parameters: int, samples: int) -> Problem:
    """`LAYERS` square matrices and biases, with tanh between, of about so many parameters."""
    width = _width(parameters, matrices=LAYERS)
    keys = jax.random.split(jax.random.key(0), LAYERS)
    params = [{"w": _matrix(key, width, width), "b": jnp.zeros(width)} for key in keys]

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, targets = batch
        for layer in params:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        return jnp.mean((hidden - targets) ** 2)

    return Problem(params, _data((samples, width)), loss)


def transformer(parameters: int, samples: int) -> Problem:
    """Four attention blocks on `TOKENS` tokens, of about so many parameters."""
    width = _width(parameters, matrices=4 * 12)
    params = []
    for key in jax.random.split(jax.random.key(0), 4):
        qkv, out, up, down = jax.random.split(key, 4)
        params.append(
            {
                "qkv": _matrix(qkv, width, 3 * width),
                "out": _matrix(out, width, width),
                "up": _matrix(up, width, 4 * width),
                "down": _matrix(down, 4 * width, width),
            }
        )

    def normed(hidden: jax.Array) -> jax.Array:
        return jax.nn.standardize(hidden, axis=-1)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, targets = batch
        for layer in params:
            qkv = (normed(hidden) @ layer["qkv"]).reshape(*hidden.shape[:2], 3, HEADS, -1)
            mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
            hidden = hidden + mixed.reshape(hidden.shape) @ layer["out"]
            hidden = hidden + jax.nn.gelu(normed(hidden) @ layer["up"]) @ layer["down"]
        return jnp.mean((hidden - targets) ** 2)

    return Problem(params, _data((samples, TOKENS, width)), loss)


def size(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _width(parameters: int, matrices: int) -> int:
    return max(8, round((parameters / matrices) ** 0.5 / 8) * 8)


def _matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
    return jax.random.normal(key, (rows, columns)) / rows**0.5


def _data(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    x_key, y_key = jax.random.split(jax.random.key(1))
    return jax.random.normal(x_key, shape), jax.random.normal(y_key, shape)
