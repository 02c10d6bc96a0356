"""A physics-informed network for a convection equation, on which plain training gets stuck.

u_t + 30 u_x = 0 on x in [0, 2 pi], t in [0, 1], periodic in x, u = sin x at t = 0; solved by
sin(x - 30 t). From Krishnapriyan et al. 2021, "Characterizing possible failure modes in
physics-informed neural networks", https://arxiv.org/abs/2109.01050.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.problem import Params, Problem
from benchmarks.quality.problems import layers

SEED = 2021
SPEED = 30.0
TRAIN_SIZE = 4_000
VALIDATION_SIZE = 1_000
GRID = (64, 50)


class Points(NamedTuple):
    """Points at which a sample of the loss looks.

    Attributes:
        inside: x and t of a point at which the equation holds, `[n, 2]`.
        start: x at t = 0, `[n]`.
        edge: t at x = 0 and x = 2 pi, `[n]`.
    """

    inside: jax.Array
    start: jax.Array
    edge: jax.Array


def pinn_convection() -> Problem:
    """Residual, initial and boundary error; 1,185 parameters; scored by relative L2 error."""
    rng = np.random.default_rng(SEED)
    return Problem(
        name="pinn_convection",
        kind="global",
        init=layers.perceptron(2, 32, 32, 1),
        loss=loss,
        fitness=loss,
        straight_through=None,
        score=relative_error,
        train=random_points(rng, TRAIN_SIZE),
        validation=random_points(rng, VALIDATION_SIZE),
        test=grid_points(),
        batch_size=64,
        budget=600_000,
    )


def random_points(rng: np.random.Generator, size: int) -> Points:
    """Draws points uniformly."""
    x, t = 2 * np.pi * rng.uniform(size=[2, size]), rng.uniform(size=[2, size])
    return points(x[0], t[0], x[1], t[1])


def grid_points() -> Points:
    """The points of a regular grid."""
    x, t = np.meshgrid(np.linspace(0, 2 * np.pi, GRID[0]), np.linspace(0, 1, GRID[1]))
    return points(x.ravel(), t.ravel(), x.ravel(), t.ravel())


def points(x: np.ndarray, t: np.ndarray, start: np.ndarray, edge: np.ndarray) -> Points:
    """Points as float32 arrays."""
    parts = np.stack([x, t], axis=-1), start, edge
    return Points(*(jnp.asarray(part, jnp.float32) for part in parts))


def solution(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    """The network's u, of the shape that x and t broadcast to."""
    inputs = jnp.stack(jnp.broadcast_arrays(x, t), axis=-1)
    return layers.forward(params, inputs, jnp.tanh)[..., 0]


def loss(params: Params, batch: Points) -> jax.Array:
    """The sum of the mean squares of residual, initial error and difference of the edges."""
    x, t = batch.inside.T
    # The equation is that u does not change along (speed, 1): one directional derivative.
    direction = (SPEED * jnp.ones_like(x), jnp.ones_like(t))
    _, residual = jax.jvp(lambda x, t: solution(params, x, t), (x, t), direction)
    zero = jnp.zeros([])
    initial = solution(params, batch.start, zero) - jnp.sin(batch.start)
    edges = solution(params, zero, batch.edge) - solution(params, zero + 2 * jnp.pi, batch.edge)
    return jnp.mean(residual**2) + jnp.mean(initial**2) + jnp.mean(edges**2)


def relative_error(params: Params, batch: Points) -> jax.Array:
    """The L2 norm of the error at the points inside, relative to that of the solution."""
    x, t = batch.inside.T
    exact = jnp.sin(x - SPEED * t)
    error = jnp.mean((solution(params, x, t) - exact) ** 2)
    return jnp.sqrt(error / jnp.maximum(jnp.mean(exact**2), 1e-12))
