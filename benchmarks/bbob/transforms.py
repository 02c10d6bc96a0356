"""What bends the functions of BBOB. Gradients are finite everywhere, also at the optimum."""

import jax
import jax.numpy as jnp
import numpy as np


def fractions(dimension: int) -> np.ndarray:
    """From 0 to 1 over the entries."""
    return np.arange(dimension) / (dimension - 1)


def conditioning(condition: float, dimension: int) -> np.ndarray:
    """The diagonal of a matrix: from 1 to the square root of `condition`."""
    return condition ** (fractions(dimension) / 2)


def oscillate(x: jax.Array) -> jax.Array:
    """Small smooth waves around the identity, on each side of zero others."""
    still = x == 0
    size = jnp.log(jnp.where(still, 1.0, jnp.abs(x)))
    fast, slow = jnp.where(x > 0, 10.0, 5.5), jnp.where(x > 0, 7.9, 3.1)
    bent = jnp.exp(size + 0.049 * (jnp.sin(fast * size) + jnp.sin(slow * size)))
    return jnp.where(still, 0.0, jnp.sign(x) * bent)


def asymmetric(x: jax.Array, beta: float) -> jax.Array:
    """Positive entries to a power above 1 that grows with the entry and its position."""
    above = x > 0
    positive = jnp.where(above, x, 1.0)
    power = 1 + beta * fractions(x.size) * jnp.sqrt(positive)
    return jnp.where(above, positive**power, x)


def penalty(x: jax.Array) -> jax.Array:
    """The squared distance to the box [-5, 5], `[]`."""
    return jnp.sum(jnp.maximum(jnp.abs(x) - 5, 0) ** 2)


def root(x: jax.Array, power: float = 0.5) -> jax.Array:
    """A power below 1 of numbers from 0 on, with gradient 0 at 0."""
    still = x <= 0
    return jnp.where(still, 0.0, jnp.where(still, 1.0, x) ** power)
