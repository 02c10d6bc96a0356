"""Weights of few bits: symmetric levels, as many below zero as above."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks.g2p.dictionary import Params


class Format(NamedTuple):
    """How weights are deployed.

    Attributes:
        bits: of a weight, 2 or more.
        rows: whether each row of a matrix has a scale of its own, or each tensor one. A vector has
            one scale.
    """

    bits: int
    rows: bool

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.bits} bits, a scale for each {'row' if self.rows else 'tensor'}"


def rounded(weights: jax.Array, form: Format) -> jax.Array:
    """The nearest levels; the largest weight is the last level."""
    most = 2 ** (form.bits - 1) - 1
    axis = -1 if form.rows else None
    largest = jnp.max(jnp.abs(weights), axis, keepdims=True)
    scale = jnp.where(largest > 0, largest / most, 1)
    return scale * jnp.round(weights / scale)


def deployed(params: Params, form: Format) -> Params:
    """All parameters rounded."""
    return jax.tree.map(lambda leaf: rounded(leaf, form), params)


def straight_through(params: Params, form: Format) -> Params:
    """The same values, with the gradient of the parameters that are rounded.

    References:
        Bengio et al., https://arxiv.org/abs/1308.3432, 2013.
    """
    return jax.tree.map(lambda leaf: leaf + lax.stop_gradient(rounded(leaf, form) - leaf), params)
