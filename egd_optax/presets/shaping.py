"""Weights from fitness, as published strategies define them."""

import jax
import jax.numpy as jnp


def mean_difference(fitness: jax.Array) -> jax.Array:
    """How far below the mean of all members each is, over their number.

    The weights of a pair add up to its difference. Without the mean they would be rounded at the
    size of the fitness.
    """
    finite = jnp.isfinite(fitness)
    return (jnp.mean(fitness, where=finite) - fitness) / fitness.size


def standard_score(fitness: jax.Array, epsilon: float) -> jax.Array:
    """How many standard deviations below the mean each is, over their number.

    Args:
        fitness: `[n]`.
        epsilon: added to the variance.
    """
    variance = jnp.var(fitness, where=jnp.isfinite(fitness))
    return mean_difference(fitness) / jnp.sqrt(variance + epsilon)
