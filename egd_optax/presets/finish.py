"""A few generations on the metric itself, behind the last gradient step."""

from typing import Any

import optax

from egd_optax import accept, recombine
from egd_optax._checks import check_number, check_size

# The last sigma, over the first one.
FLOOR = 0.1


def finish(
    generations: int = 4, *, population_size: int = 16, sigma: float = 0.1
) -> dict[str, Any]:
    """The end of a run: a strategy without gradients on the metric itself, from trained parameters.

    Train with a gradient for nine tenths of the compute, with a schedule that ends there. Then take
    `generations` steps with this. Score a member on the whole training set, or on as much of it as
    a tenth of the compute pays for. Few generations on many samples beat many on few.

    It helps if the metric weighs errors in another way than the loss, as the balanced error does.
    It does not help the F1 score, nor a metric that a gradient already follows. The last tenth of
    the gradient steps is worth more there.

    Args:
        generations: steps with it. The noise decays over them, along a cosine.
        population_size: mirrored members of a generation, an even number.
        sigma: standard deviation of the noise in the first generation, a fraction of each leaf's
            root mean square. It decays to a tenth of that.

    Returns:
        Arguments of `evolve`, for `evolve(optax.set_to_zero(), ...)`, with a generation on every
        step, centered ranks over all members, and the child taken without a comparison.

    Raises:
        TypeError: `sigma` is no number, or `generations` no int.
        ValueError: `sigma` or `generations` is not above zero.

    Cost:
        A generation costs `population_size` forward passes.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> x = jnp.linspace(-1.0, 1.0, 50)
        >>> def missed(params): return jnp.mean((x > 0.5) & (params["w"] * x + params["b"] < 0))
        >>> def alarms(params): return jnp.mean((x <= 0.5) & (params["w"] * x + params["b"] > 0))
        >>> def metric(params): return 3 * missed(params) + alarms(params)
        >>> params = {"w": jnp.ones([]), "b": jnp.full([], -0.9)}  # trained
        >>> tx = evolve(optax.set_to_zero(), **presets.finish(generations=8))
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=metric)
        ...   return optax.apply_updates(params, updates), state
        >>> trained = metric(params)
        >>> for _ in range(8):
        ...   params, state = step(params, state)
        >>> bool(metric(params) < trained)
        True
    """
    check_number("sigma", sigma, zero=False)
    generations = check_size("generations", generations)
    return {
        "evolve_every": 1,
        "population_size": population_size,
        "antithetic": True,
        "sigma": optax.cosine_decay_schedule(sigma, generations, FLOOR),
        "recombine": recombine.centered_rank(),
        "accept": accept.always(),
    }
