"""Cycles that follow a metric without a gradient."""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number


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
