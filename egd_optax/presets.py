"""Settings by what they are for, as keyword dictionaries for `evolve` and `egd`.

>>> import optax
>>> from egd_optax import evolve, presets
>>> tx = evolve(optax.adam(1e-3), **presets.metric())
>>> tx = evolve(optax.adam(1e-3), **presets.metric(cycles=400, sigma=0.03), key=1)

They are a start for the search for settings, not its end: `sigma` depends on the
problem. benchmarks/quality measures what each of them reaches, and where it loses.
"""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number

# The last sigma of `global_search`, over the first one.
FLOOR = 1e-2


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


def metric(
    cycles: int | None = None,
    *,
    evolve_every: int = 5,
    population_size: int = 64,
    sigma: float = 0.06,
    rank: int = 1,
) -> dict[str, Any]:
    """Many cheap generations that follow a metric without a gradient.

    The gradient steps follow a loss that has one; the cycles turn them towards `value_fn`.
    The child is taken without a comparison, which would say little on a small batch. It is
    the average of many members. Score a member on a small batch, a fresh one each
    cycle, and give an adaptive optimizer a decaying learning rate. For a small model add
    `execution=Execution(candidate_batch_size=64)`, which evaluates a population at once if
    there is memory for it.

    Args:
        cycles: cycles of the run, its steps over `evolve_every`. The noise then starts at twice
            `sigma` and decays along a cosine. None for constant noise.
        evolve_every: steps between cycles.
        population_size: mirrored members of a cycle, an even number.
        sigma: standard deviation of the noise, a fraction of each leaf's root mean square.
        rank: of the noise.

    Returns:
        Arguments of `evolve`: mirrored members, low-rank noise, centered ranks over all of them.

    Raises:
        TypeError: `sigma` is no number.
        ValueError: `cycles` or `sigma` is not above zero.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> schedule = optax.cosine_decay_schedule(3e-3, 50)
        >>> tx = evolve(optax.adam(schedule), **presets.metric(cycles=10))
        >>> def value_fn(params, batches, generation):
        ...   x = batches[generation]
        ...   return jnp.mean(jnp.sign(x @ params["w"]) != jnp.sign(x[:, 0]))
        >>> params = {"w": jnp.ones(4)}
        >>> batches = jax.random.normal(jax.random.key(0), (1, 16, 4))  # one a generation
        >>> updates, state = tx.update(params, tx.init(params), params, evolve=True,
        ...   value_fn=value_fn, batches=batches)
        >>> int(state.info.evaluations)
        64
    """
    check_number("sigma", sigma, zero=False)
    schedule: Any = sigma
    if cycles is not None:
        check_number("cycles", cycles, zero=False)
        schedule = optax.cosine_decay_schedule(2 * sigma, cycles, alpha=0.01)
    return {
        "evolve_every": evolve_every,
        "population_size": population_size,
        "antithetic": True,
        "sigma": schedule,
        "noise": noise.low_rank(rank),
        "recombine": recombine.centered_rank(),
        "accept": accept.always(),
    }


def global_search(
    sigma: float,
    cycles: int,
    *,
    population_size: int = 64,
    generations: int = 10,
    es_optimizer: optax.GradientTransformation = optax.sgd(0.15),
) -> dict[str, Any]:
    """From far to near over a multimodal function: evolution does the work.

    Use it around an optimizer of a small learning rate, which polishes what is found.

    Args:
        sigma: standard deviation of the noise in the first cycle, in units of the parameters.
            Try from a third of the half-width of the searched region up to the half-width. It
            decays to a hundredth of that; the base does the rest.
        cycles: cycles of the run, as many as its steps.
        population_size: mirrored members of a generation, an even number.
        generations: rounds of a cycle.
        es_optimizer: steps from the parent to the child of a generation. SGD with a small
            learning rate averages over many generations, and so sees through the waves of a
            function. Its rate times the generations of the run should be above 40. In 100
            dimensions, with 1500 generations, a rate of 0.035 solves Rastrigin's function and a
            rate of 0.15 does not.

    Returns:
        Arguments of `evolve`: a cycle on every step, generations of mirrored members around the
        moving parent, centered ranks over all of them.

    Raises:
        TypeError: `sigma` is no number.
        ValueError: `sigma` or `cycles` is not above zero.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets
        >>> def bumpy(x): return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))
        >>> tx = evolve(optax.sgd(1e-4), **presets.global_search(sigma=1.5, cycles=30))
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(jax.grad(bumpy)(params), state, params, value_fn=bumpy)
        ...   return optax.apply_updates(params, updates), state
        >>> params = jnp.full(5, 3.0)
        >>> state = tx.init(params)
        >>> for _ in range(30):
        ...   params, state = step(params, state)
        >>> bool(bumpy(params) < 1.5)
        True
    """
    check_number("sigma", sigma, zero=False)
    check_number("cycles", cycles, zero=False)
    return {
        "evolve_every": 1,
        "population_size": population_size,
        "antithetic": True,
        "generations": generations,
        "sigma": optax.exponential_decay(sigma, cycles, FLOOR),
        "noise": noise.gaussian(relative=False),
        "recombine": recombine.centered_rank(),
        "es_optimizer": es_optimizer,
        "accept": accept.always(),
    }
