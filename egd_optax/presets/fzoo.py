"""FZOO: one-sided steps whose length adapts to the spread of the losses."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number


def fzoo(
    learning_rate: optax.ScalarOrSchedule, *, epsilon: float = 1e-3, population_size: int = 8
) -> dict[str, Any]:
    """FZOO: members at plus or minus epsilon in every entry, and steps over the losses' spread.

    The gradient is the mean of (L(params + epsilon u) - L(params)) / epsilon * u, over the standard
    deviation of the members' losses. Every entry of u is -1 or 1.

    Args:
        learning_rate: of SGD, a float or an optax schedule of the step. A step moves each entry by
            about `learning_rate / (epsilon * sqrt(population_size))`. With the defaults start at
            1e-5 to 1e-4.
        epsilon: size of the noise, in units of the parameters.
        population_size: perturbed members of a step, at least 2. The parent comes in addition, so
            that `evolve` gets one more.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a
        population on every step.

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: `epsilon` is not above zero.

    Cost:
        A step costs `population_size + 1` forward passes, and twice `population_size` draws.

    References:
        Dang et al., `FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models
        towards Adam-Scale Speed <https://arxiv.org/abs/2506.09034>`_, 2025.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def loss(params): return jnp.sum((params - 1) ** 2)
        >>> tx = evolve(optax.set_to_zero(), **presets.fzoo(optax.cosine_decay_schedule(1e-4, 60)))
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> bool(loss(params) < 0.05)
        True
    """
    check_number("epsilon", epsilon, zero=False)
    return {
        "evolve_every": 1,
        "population_size": population_size + 1,
        "sigma": epsilon,
        "noise": noise.rademacher(relative=False),
        "recombine": recombine.member_weights(difference_over_spread),
        "es_optimizer": optax.chain(optax.scale(1 / epsilon**2), optax.sgd(learning_rate)),
        "accept": accept.always(),
    }


def difference_over_spread(fitness: jax.Array) -> jax.Array:
    """How far below the parent each member is, over the spread of the others and their number."""
    parent, members = fitness[0], fitness[1:]
    finite = jnp.isfinite(members)
    spread = jnp.std(members, ddof=1, where=finite)
    # Members of one loss say nothing.
    below = jnp.where(spread > 0, (parent - members) / spread, jnp.zeros_like(members))
    return jnp.pad(below / members.size, (1, 0))
