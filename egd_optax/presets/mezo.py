"""MeZO: steps along random directions, at the memory of inference."""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number
from egd_optax.presets.shaping import mean_difference


def mezo(
    learning_rate: optax.ScalarOrSchedule = 1e-6, *, epsilon: float = 1e-3, pairs: int = 1
) -> dict[str, Any]:
    """MeZO: simultaneous perturbation (SPSA), whose directions are drawn again from their keys.

    The gradient is (L(params + epsilon z) - L(params - epsilon z)) / (2 epsilon) * z, the mean over
    `pairs` normal directions z.

    Args:
        learning_rate: of SGD, a float or an optax schedule of the step.
        epsilon: standard deviation of the noise, in units of the parameters.
        pairs: directions of a step, at least 1.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a
        pair on every step.

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: `epsilon` is not above zero.

    Cost:
        A step costs `2 * pairs` forward passes, and twice as many draws as pairs.

    References:
        Malladi et al., `Fine-Tuning Language Models with Just Forward Passes
        <https://arxiv.org/abs/2305.17333>`_, 2023; Spall, `Multivariate Stochastic Approximation
        Using a Simultaneous Perturbation Gradient Approximation
        <https://doi.org/10.1109/9.119632>`_, 1992.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def loss(params): return jnp.sum((params - 1) ** 2)
        >>> tx = evolve(optax.set_to_zero(), **presets.mezo(0.05))
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(100):
        ...   params, state = step(params, state)
        >>> bool(loss(params) < 0.05)
        True
    """
    check_number("epsilon", epsilon, zero=False)
    return {
        "evolve_every": 1,
        "population_size": 2 * pairs,
        "antithetic": True,
        "sigma": epsilon,
        "noise": noise.gaussian(relative=False),
        "recombine": recombine.member_weights(mean_difference),
        "es_optimizer": optax.chain(optax.scale(1 / epsilon**2), optax.sgd(learning_rate)),
        "accept": accept.always(),
    }
