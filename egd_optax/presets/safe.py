"""A rare and small cycle that does no harm."""

from typing import Any

from egd_optax import accept, recombine


def safe(
    *, evolve_every: int = 400, population_size: int = 8, sigma: float = 0.02
) -> dict[str, Any]:
    """A rare and small cycle, taken only if it is better: next to no cost, little gain.

    Pass `accept_value_fn`, with a batch that `value_fn` does not see, to be safe from members
    that win by the luck of their batch.

    Args:
        evolve_every: steps between cycles.
        population_size: mirrored members of a cycle, an even number.
        sigma: standard deviation of the noise, a fraction of each leaf's root mean square.

    Returns:
        Arguments of `evolve`: mirrored members, centered ranks over all of them. The parent stays
        unless the child beats it.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> tx = evolve(optax.adam(1e-2), **presets.safe())
        >>> params = jnp.ones(3)
        >>> updates, state = tx.update(params, tx.init(params), params, evolve=True,
        ...   value_fn=lambda p: jnp.sum(p**2), accept_value_fn=lambda p: jnp.sum(p**2) + 1)
        >>> bool(state.info.accepted)
        True
    """
    return {
        "evolve_every": evolve_every,
        "population_size": population_size,
        "antithetic": True,
        "sigma": sigma,
        "recombine": recombine.centered_rank(),
        "accept": accept.improved(),
    }
