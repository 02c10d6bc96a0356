"""A search from far to near."""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number
from egd_optax.sigma import Sigma

# The last sigma, over the first one.
FLOOR = 1e-2


def global_search(
    sigma: float | Sigma,
    cycles: int,
    *,
    population_size: int = 64,
    generations: int = 10,
    es_optimizer: optax.GradientTransformation = optax.sgd(0.15),
) -> dict[str, Any]:
    """From far to near over a multimodal function: evolution does the work.

    Cycles run on the first `cycles` steps. Go on with the steps of the base alone, for about a
    twentieth of the compute. They end in the nearest minimum; noise keeps cycles away from it. With
    100,000 evaluations this takes scores from 1e-5 down to the digits of float32.

    Args:
        sigma: standard deviation of the noise in the first cycle, in units of the parameters.
            Try from a third of the half-width of the searched region up to the half-width. It
            decays to a hundredth of that; the base does the rest. Or a rule that adapts, as
            `egd_optax.sigma.path_length(0.5)`. It needs no good start, and is more exact if waves
            lie on one great valley. Among many valleys that are nearly as deep it is too fast.
        cycles: cycles of the run, on its first steps.
        population_size: mirrored members of a generation, an even number.
        generations: rounds of a cycle.
        es_optimizer: steps from the parent to the child of a generation. SGD with a small
            learning rate averages over many generations, and so sees through the waves of a
            function. Its rate times the generations of the run should be above 40. In 100
            dimensions, with 1500 generations, a rate of 0.035 solves Rastrigin's function and a
            rate of 0.15 does not.

    Returns:
        Arguments of `evolve`, a cycle on each of the first steps, generations of mirrored members
        around the moving parent, centered ranks over all of them.

    Raises:
        TypeError: `sigma` is no number and no rule.
        ValueError: `sigma` or `cycles` is not above zero.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def bumpy(x): return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))
        >>> tx = evolve(optax.sgd(1e-3), **presets.global_search(sigma=1.5, cycles=30))
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(jax.grad(bumpy)(params), state, params, value_fn=bumpy)
        ...   return optax.apply_updates(params, updates), state
        >>> params = jnp.full(5, 3.0)
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...   params, state = step(params, state)
        >>> int(state.cycle), bool(bumpy(params) < 1e-3)
        (30, True)
    """
    adapts = isinstance(sigma, Sigma)
    if not adapts:
        check_number("sigma", sigma, zero=False)
    check_number("cycles", cycles, zero=False)
    return {
        "evolve_every": 1,
        "window": (0, cycles),
        "population_size": population_size,
        "antithetic": True,
        "generations": generations,
        "sigma": sigma if adapts else optax.exponential_decay(sigma, cycles, FLOOR),
        "noise": noise.gaussian(relative=False),
        "recombine": recombine.centered_rank(),
        "es_optimizer": es_optimizer,
        "accept": accept.always(),
    }
