"""Networks that are deployed with weights of a few values.

Training sees the weights before rounding; what counts is the network after it. Biases stay.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks.quality.problem import Params, Problem
from benchmarks.quality.problems import curves, layers, samples
from benchmarks.quality.ternary import round_tensor as ternary_weight_networks
from benchmarks.quality.ternary import straight_through

Quantizer = Callable[[jax.Array], jax.Array]


def ternary_absmax() -> Problem:
    """Digits, 2,410 parameters; weights of three values by their largest magnitude."""
    return digits("ternary_absmax", (64, 32, 10), absmax(1))


def ternary_mse() -> Problem:
    """Digits, 2,410 parameters; the three values nearest to the weights."""
    return digits("ternary_mse", (64, 32, 10), nearest_ternary)


def int4_digits() -> Problem:
    """Digits, a narrow network; weights of 15 values by their largest magnitude."""
    return digits("int4_digits", (64, 8, 8, 10), absmax(7))


def ternary_1d() -> Problem:
    """Curves, a small convolutional network; weights of three values by a threshold."""
    return quantized(
        "ternary_1d",
        curves.load(),
        layers.convolutional,
        layers.forward_convolutional,
        ternary_weight_networks,
    )


def digits(name: str, widths: tuple[int, ...], quantizer: Quantizer) -> Problem:
    """Digits for a rounded multilayer perceptron."""
    init = layers.perceptron(*widths)
    return quantized(name, samples.digits(), init, layers.forward, quantizer)


def quantized(
    name: str,
    splits: samples.Splits,
    init: Callable[[jax.Array], Params],
    network: samples.Network,
    quantizer: Quantizer,
) -> Problem:
    """Classification with a network whose tensors are rounded one by one."""

    def deploy(params: Params) -> Params:
        return jax.tree.map(lambda leaf: quantizer(leaf) if leaf.ndim > 1 else leaf, params)

    def deployed(params: Any, inputs: jax.Array) -> jax.Array:
        return network(deploy(params), inputs)

    def passed_through(params: Any, inputs: jax.Array) -> jax.Array:
        return network(straight_through(deploy, params), inputs)

    return Problem(
        name=name,
        kind="metric",
        init=init,
        loss=samples.measured(network, samples.cross_entropy),
        fitness=samples.measured(deployed, samples.cross_entropy),
        straight_through=samples.measured(passed_through, samples.cross_entropy),
        score=samples.measured(deployed, samples.error),
        **splits._asdict(),
        batch_size=32,
        budget=600_000,
    )


def absmax(levels: int) -> Quantizer:
    """Rounds to the nearest multiple of a step; the largest magnitude is `levels` steps."""

    def quantizer(weights: jax.Array) -> jax.Array:
        largest = jnp.max(jnp.abs(weights))
        step = jnp.maximum(largest, jnp.finfo(weights.dtype).tiny * levels) / levels
        return step * jnp.round(weights / step)

    return quantizer


def nearest_ternary(weights: jax.Array) -> jax.Array:
    """Rounds a tensor to {-s, 0, s} with the least squared error over all s.

    Of k weights that are kept, the best scale is their mean magnitude, sum_k / k, and the
    squared error then is that of zeros less sum_k^2 / k. For each k the largest magnitudes
    are the ones to keep, so the best of all k is found from their sorted order (equation 8
    of Li et al. 2016, https://arxiv.org/abs/1605.04711, solved there by an approximation).
    """
    size = jnp.abs(weights)
    # Bits of floats that are not negative sort like the floats, on a CPU five times as fast.
    bits = lax.sort(lax.bitcast_convert_type(size.ravel(), jnp.int32), is_stable=False)
    ordered = lax.bitcast_convert_type(bits, weights.dtype)[::-1]
    gain = jnp.cumsum(ordered) ** 2 / jnp.arange(1, size.size + 1)
    # Ties with the smallest one kept are kept as well, or which of them is would be arbitrary.
    keep = size >= ordered[jnp.argmax(gain)]
    return jnp.where(keep, jnp.mean(size, where=keep) * jnp.sign(weights), 0)
