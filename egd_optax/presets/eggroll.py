"""EGGROLL: an evolution strategy with noise of low rank."""

import math
from typing import Any

import jax
import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number
from egd_optax.execution import Execution
from egd_optax.presets.shaping import standard_score

# The authors' program adds it to the variance of the fitness.
EPSILON = 1e-5


def eggroll(
    learning_rate: optax.ScalarOrSchedule,
    *,
    sigma: float,
    population_size: int = 256,
    rank: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> dict[str, Any]:
    """EGGROLL: mirrored members of low rank that are never formed, weighed by standard scores.

    Args:
        learning_rate: of SGD, a float or an optax schedule of the generation.
        sigma: standard deviation of the noise, in units of the parameters.
        population_size: mirrored members of a generation, an even number.
        rank: of the noise of a matrix. Vectors have a normal number for each entry.
        optimizer: a transformation without a learning rate and sign of its own, in place of SGD.
            Write `optax.scale_by_adam()`, not `optax.adam(...)`. None for SGD.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a
        generation on every step.

    Raises:
        TypeError: `sigma` is no number.
        ValueError: `sigma` is not above zero, or `rank` is below 1.

    Cost:
        A generation costs `population_size` forward passes, which share the products with the
        parent. A draw is `rank * (rows + columns)` normal numbers for a matrix.

    References:
        Sarkar et al., `Evolution Strategies at the Hyperscale
        <https://arxiv.org/abs/2511.16652>`_, 2025. The factor sqrt(population_size) of the
        gradient is that of the authors' program.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def loss(params): return jnp.mean(jnp.abs(jnp.tanh(jnp.eye(4) @ params["w"]) - 0.5))
        >>> tx = evolve(optax.set_to_zero(), **presets.eggroll(0.1, sigma=0.1, population_size=32))
        >>> params = {"w": jnp.zeros((4, 2))}
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> bool(loss(params) < 0.1)
        True
    """
    check_number("sigma", sigma, zero=False)
    step = optax.identity() if optimizer is None else optimizer
    return {
        "evolve_every": 1,
        "population_size": population_size,
        "antithetic": True,
        "sigma": sigma,
        "noise": noise.low_rank(rank, relative=False),
        "recombine": recombine.member_weights(scores),
        "es_optimizer": optax.chain(
            optax.scale(math.sqrt(population_size)),
            step,
            optax.scale_by_learning_rate(learning_rate),
        ),
        "accept": accept.always(),
        "execution": Execution(evaluate="auto"),
    }


def scores(fitness: jax.Array) -> jax.Array:
    """The standard scores of all members, over their number."""
    return standard_score(fitness, EPSILON)
