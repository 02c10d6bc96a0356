"""Functions of 100 variables with very many local minima, each 0 at its global minimum.

Formulas and domains: https://www.sfu.ca/~ssurjano/optimization.html. Parameters start uniform
in the domain and may leave it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.problem import Batch, Params, Problem

DIMENSIONS = 100
SEED = 2021


def levy_100() -> Problem:
    """Levy's function, with its minimum at 1; solved below 0.05, the next one is 0.09."""
    return landscape("levy_100", levy, bound=10.0, success=0.05)


def ackley_100() -> Problem:
    """Ackley's function, shifted; solved below 0.01.

    At the origin its minimum would favour noise that is relative to the parameters.
    """
    bound = 32.768
    minimum = jnp.asarray(shift(bound))
    return landscape("ackley_100", lambda x: ackley(x - minimum), bound, success=0.01)


def rastrigin_100() -> Problem:
    """Rastrigin's function, rotated, so that it does not separate, and shifted.

    No score counts as solved: next to no method finds the global basin among 11^100.
    """
    bound = 5.12
    minimum, rotation = jnp.asarray(shift(bound)), jnp.asarray(rotate())
    return landscape("rastrigin_100", lambda x: rastrigin(rotation @ (x - minimum)), bound)


def landscape(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    bound: float,
    success: float | None = None,
) -> Problem:
    """A function to be minimised from random points of [-bound, bound]^100."""

    def init(key: jax.Array) -> Params:
        return {"x": jax.random.uniform(key, [DIMENSIONS], minval=-bound, maxval=bound)}

    def objective(params: Params, batch: Batch) -> jax.Array:
        return function(params["x"])

    dummy = jnp.zeros([1])
    return Problem(
        name=name,
        kind="global",
        init=init,
        loss=objective,
        fitness=objective,
        straight_through=None,
        score=objective,
        train=dummy,
        validation=dummy,
        test=dummy,
        batch_size=1,
        budget=100_000,
        success=success,
    )


def levy(x: jax.Array) -> jax.Array:
    """https://www.sfu.ca/~ssurjano/levy.html, 0 where every x is 1."""
    w = 1 + (x - 1) / 4
    first = jnp.sin(jnp.pi * w[0]) ** 2
    middle = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
    return first + jnp.sum(middle) + last


def ackley(x: jax.Array) -> jax.Array:
    """https://www.sfu.ca/~ssurjano/ackley.html, 0 at the origin."""
    # Without the floor the gradient at the minimum is not a number.
    distance = jnp.sqrt(jnp.maximum(jnp.mean(x**2), 1e-14))
    waves = jnp.mean(jnp.cos(2 * jnp.pi * x))
    return 20 * (1 - jnp.exp(-0.2 * distance)) + (jnp.e - jnp.exp(waves))


def rastrigin(x: jax.Array) -> jax.Array:
    """https://www.sfu.ca/~ssurjano/rastr.html, 0 at the origin."""
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def shift(bound: float) -> np.ndarray:
    """A fixed random point of the inner half of the domain, float32 `[100]`."""
    point = np.random.default_rng(SEED).uniform(-bound / 2, bound / 2, DIMENSIONS)
    return point.astype(np.float32)


def rotate() -> np.ndarray:
    """A fixed random orthogonal matrix, float32 `[100, 100]`."""
    normal = np.random.default_rng(SEED + 1).normal(size=[DIMENSIONS, DIMENSIONS])
    return np.linalg.qr(normal).Q.astype(np.float32)
