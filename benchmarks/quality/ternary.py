"""Rounds weights to three values, as a device with ternary weights would store them."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks.quality.problem import Params

# Of the mean magnitude of a tensor; the threshold of Ternary Weight Networks,
# Li et al. 2016, https://arxiv.org/abs/1605.04711.
THRESHOLD = 0.7


def round_tensor(weights: jax.Array) -> jax.Array:
    """Rounds a tensor to {-s, 0, s}.

    Args:
        weights: float, of any shape.

    Returns:
        Zero where the magnitude is below the threshold, elsewhere the sign times s, the
        mean magnitude of the weights above the threshold. Its gradient is useless: a
        small change of a weight changes its rounded value not at all, or by s.
    """
    size = jnp.abs(weights)
    keep = size > THRESHOLD * jnp.mean(size)
    scale = jnp.sum(size, where=keep) / jnp.maximum(jnp.sum(keep), 1)
    return jnp.where(keep, scale * jnp.sign(weights), 0)


def straight_through(deploy: Callable[[Params], Params], params: Params) -> Params:
    """The deployed parameters, with the gradient of `deploy` taken for the identity."""
    return jax.tree.map(
        lambda raw, deployed: raw + lax.stop_gradient(deployed - raw), params, deploy(params)
    )
