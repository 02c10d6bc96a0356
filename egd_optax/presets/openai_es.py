"""OpenAI's evolution strategy."""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number


def openai_es(
    learning_rate: optax.ScalarOrSchedule = 0.01,
    *,
    sigma: float = 0.02,
    population_size: int = 256,
    weight_decay: float = 0.005,
) -> dict[str, Any]:
    """OpenAI's evolution strategy: mirrored members, centered ranks, Adam.

    Args:
        learning_rate: of Adam, a float or an optax schedule of the generation.
        sigma: standard deviation of the noise, in units of the parameters.
        population_size: mirrored members of a generation, an even number.
        weight_decay: the L2 coefficient: this part of the parameters is added to the gradient.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a
        generation on every step.

    Raises:
        TypeError: `sigma` or `weight_decay` is no number.
        ValueError: `sigma` is not above zero, or `weight_decay` is below.

    Cost:
        A generation costs `population_size` forward passes, and half as many draws, twice. Adam
        keeps two arrays like the parameters.

    References:
        Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def loss(params): return jnp.sum(jnp.abs(params - 1))
        >>> tx = evolve(optax.set_to_zero(), **presets.openai_es(0.1, population_size=16))
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(40):
        ...   params, state = step(params, state)
        >>> bool(loss(params) < 0.5)
        True
    """
    check_number("sigma", sigma, zero=False)
    check_number("weight_decay", weight_decay, zero=True)
    # From the sum of the members' ranks, whose positive part is one, to their mean, from -1/2 to
    # 1/2: the decay is added to a gradient of that size.
    mean_rank = population_size / (8 * (population_size - 1)) / sigma**2
    return {
        "evolve_every": 1,
        "population_size": population_size,
        "antithetic": True,
        "sigma": sigma,
        "noise": noise.gaussian(relative=False),
        "recombine": recombine.centered_rank(),
        "es_optimizer": optax.chain(
            optax.scale(mean_rank),
            optax.add_decayed_weights(weight_decay),
            optax.adam(learning_rate),
        ),
        "accept": accept.always(),
    }
