"""The strategy that fine-tunes language models in `Evolution Strategies at Scale`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number
from egd_optax.presets.shaping import standard_score


def es_at_scale(
    learning_rate: float = 5e-4, *, sigma: float = 1e-3, population_size: int = 30
) -> dict[str, Any]:
    """A small population without pairs, weighed by standard scores, in plain steps.

    The step is `learning_rate` times the mean of score times normal numbers. It does not depend on
    sigma.

    Args:
        learning_rate: of the step, in units of the parameters.
        sigma: standard deviation of the noise, in units of the parameters.
        population_size: perturbed members of a generation. The parent comes in addition, so that
            `evolve` gets one more. It has no part in the scores.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a
        generation on every step.

    Raises:
        TypeError: `learning_rate` or `sigma` is no number.
        ValueError: one of them is not above zero.

    Cost:
        A generation costs `population_size + 1` forward passes, and twice `population_size` draws.

    References:
        Qiu et al., `Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning
        <https://arxiv.org/abs/2509.24372>`_, 2025; the defaults are theirs.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def loss(params): return jnp.sum(jnp.abs(params - 1))
        >>> tx = evolve(optax.set_to_zero(), **presets.es_at_scale(0.05, sigma=0.1))
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> bool(loss(params) < 0.3)
        True
    """
    check_number("learning_rate", learning_rate, zero=False)
    check_number("sigma", sigma, zero=False)
    return {
        "evolve_every": 1,
        "population_size": population_size + 1,
        "sigma": sigma,
        "noise": noise.gaussian(relative=False),
        "recombine": recombine.member_weights(score_of_perturbed),
        "es_optimizer": optax.sgd(learning_rate / sigma),
        "accept": accept.always(),
    }


def score_of_perturbed(fitness: jax.Array) -> jax.Array:
    """The standard scores of all members but the parent, which weighs nothing."""
    return jnp.pad(standard_score(fitness[1:], epsilon=1e-16), (1, 0))
