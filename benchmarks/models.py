"""The networks that costs are measured on: a perceptron, the worst case, and a transformer.

A perceptron uses every weight once a sample. Attention layers use theirs once a token, so
that their forward passes are dear beside what a cycle does to the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
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


def transformer(parameters: int, samples: int, tokens: int = TOKENS, blocks: int = 4) -> Problem:
    """Attention blocks on so many tokens, of about so many parameters."""
    width = _width(parameters, matrices=blocks * 12)
    params = []
    for key in jax.random.split(jax.random.key(0), blocks):
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

    return Problem(params, _data((samples, tokens, width)), loss)


def convolutions(parameters: int, samples: int) -> Problem:
    """Seven 3 x 3 convolutions on images of 8 x 8, two of them with a stride, and a head."""
    width = _width(parameters, matrices=6 * 9)
    first, *rest, head = jax.random.split(jax.random.key(0), 8)
    kernels = [_matrix(first, 27, width).reshape(3, 3, 3, width)]
    kernels += [_matrix(key, 9 * width, width).reshape(3, 3, width, width) for key in rest]
    params = [{"w": kernel, "b": jnp.zeros(width)} for kernel in kernels]
    params.append({"w": _matrix(head, width, 10), "b": jnp.zeros(10)})

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, targets = batch
        for at, layer in enumerate(params[:-1]):
            stride = (2, 2) if at in (2, 4) else (1, 1)
            hidden = lax.conv_general_dilated(
                hidden, layer["w"], stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = jax.nn.relu(hidden + layer["b"])
        logits = jnp.mean(hidden, (1, 2)) @ params[-1]["w"] + params[-1]["b"]
        return jnp.mean((logits - targets) ** 2)

    inputs, targets = jax.random.split(jax.random.key(1))
    batch = jax.random.normal(inputs, (samples, 8, 8, 3)), jax.random.normal(targets, (samples, 10))
    return Problem(params, batch, loss)


def recurrent(parameters: int, samples: int, length: int = 16) -> Problem:
    """A gated recurrent unit over sequences, of about so many parameters."""
    width = _width(parameters, matrices=6)
    of_input, of_hidden = jax.random.split(jax.random.key(0))
    params = [
        {
            "input": _matrix(of_input, width, 3 * width),
            "hidden": _matrix(of_hidden, width, 3 * width),
            "bias": jnp.zeros(3 * width),
        }
    ]

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, targets = batch
        (layer,) = params

        def step(hidden: jax.Array, inputs: jax.Array) -> tuple[jax.Array, None]:
            reset, update, new = jnp.split(inputs, 3, -1)
            own_reset, own_update, own_new = jnp.split(hidden @ layer["hidden"], 3, -1)
            reset, update = jax.nn.sigmoid(reset + own_reset), jax.nn.sigmoid(update + own_update)
            return (1 - update) * jnp.tanh(new + reset * own_new) + update * hidden, None

        projected = inputs @ layer["input"] + layer["bias"]
        start = jnp.zeros((inputs.shape[0], width))
        hidden, _ = lax.scan(step, start, jnp.moveaxis(projected, 1, 0))
        return jnp.mean((hidden - targets[:, 0]) ** 2)

    return Problem(params, _data((samples, length, width)), loss)


def decoding(parameters: int, samples: int, length: int = 64) -> Problem:
    """Two attention blocks that decode greedily so many tokens of 256, with a cache.

    The inputs are vectors that stand before the first token.
    """
    width = _width(parameters, matrices=2 * 12)
    embed, *keys = jax.random.split(jax.random.key(0), 9)
    params = [{"embed": _matrix(embed, 256, width)}]
    for qkv, out, up, down in (keys[:4], keys[4:]):
        params.append(
            {
                "qkv": _matrix(qkv, width, 3 * width),
                "out": _matrix(out, width, width),
                "up": _matrix(up, width, 4 * width),
                "down": _matrix(down, 4 * width, width),
            }
        )

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, _ = batch
        embedding, *layers = params
        split = (samples, HEADS, width // HEADS)
        cache = jnp.zeros((len(layers), 2, length, *split))

        def step(carry: Any, at: jax.Array) -> tuple[Any, jax.Array]:
            hidden, cache = carry
            for number, layer in enumerate(layers):
                query, *pair = jnp.split(jax.nn.standardize(hidden) @ layer["qkv"], 3, -1)
                pair = jnp.stack(pair).reshape(2, 1, *split)
                cache = lax.dynamic_update_slice(cache, pair[None], (number, 0, at, 0, 0, 0))
                keys, values = cache[number]
                scores = jnp.einsum("shd,tshd->sht", query.reshape(split), keys)
                scores = jnp.where(jnp.arange(length) <= at, scores / split[-1] ** 0.5, -jnp.inf)
                mixed = jnp.einsum("sht,tshd->shd", jax.nn.softmax(scores), values)
                hidden = hidden + mixed.reshape(samples, -1) @ layer["out"]
                up = jax.nn.gelu(jax.nn.standardize(hidden) @ layer["up"])
                hidden = hidden + up @ layer["down"]
            logits = hidden @ embedding["embed"].T
            tokens = jnp.argmax(logits, -1)
            best = jnp.max(logits, -1) - jax.nn.logsumexp(logits, -1)
            return (embedding["embed"][tokens], cache), jnp.mean(best)

        _, likelihoods = lax.scan(step, (first, cache), jnp.arange(length))
        return -jnp.mean(likelihoods)

    return Problem(params, _data((samples, width)), loss)


def policy(parameters: int, samples: int, length: int = 200) -> Problem:
    """A policy of two hidden layers that balances a pole; as many episodes as samples."""
    width = round(parameters**0.5)
    keys = jax.random.split(jax.random.key(0), 3)
    sides = (4, width, width, 2)
    params = [
        {"w": _matrix(key, *pair), "b": jnp.zeros(pair[1])}
        for key, *pair in zip(keys, sides, sides[1:], strict=False)
    ]

    def act(params: Any, state: jax.Array) -> jax.Array:
        *hidden_layers, last = params
        for layer in hidden_layers:
            state = jnp.tanh(state @ layer["w"] + layer["b"])
        return jnp.argmax(state @ last["w"] + last["b"], -1)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            state, alive = carry
            _, speed, angle, turning = jnp.moveaxis(state, -1, 0)
            push = jnp.where(act(params, state) == 1, 10.0, -10.0)
            sine, cosine = jnp.sin(angle), jnp.cos(angle)
            both = (push + 0.05 * turning**2 * sine) / 1.1
            turn = (9.8 * sine - cosine * both) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
            move = both - 0.05 * turn * cosine / 1.1
            state = state + 0.02 * jnp.stack([speed, move, turning, turn], -1)
            alive = alive & (jnp.abs(state[:, 0]) < 2.4) & (jnp.abs(state[:, 2]) < 0.2095)
            return (state, alive), jnp.mean(alive.astype(jnp.float32))

        start = 0.05 * batch[0], jnp.ones(samples, jnp.bool_)
        _, rewards = lax.scan(step, start, None, length)
        return -jnp.sum(rewards)

    return Problem(params, _data((samples, 4)), loss)


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
