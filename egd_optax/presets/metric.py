"""Cycles that follow a metric without a gradient."""

from typing import Any

import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_number
from egd_optax.presets.share import interval, timetable


def metric(
    steps: int | None = None,
    *,
    share: float = 0.1,
    window: tuple[float, float] = (0.0, 0.5),
    samples: float = 1.0,
    evolve_every: int | None = None,
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

    Compute is counted in forward passes of a sample. A gradient costs three of them. With
    `steps` the interval is the least one with which cycles take at most `share`. It depends on
    `share`, on the length of `window`, on `population_size` and on `samples`, and not on `steps`.
    `share=0.69, window=(0, 1), samples=0.5` has a cycle every 5 steps.

    Args:
        steps: gradient steps of the run. The noise then starts at twice `sigma`, and decays along
            a cosine over the cycles. None for a run of unknown length: constant noise, and cycles
            throughout, whatever `window` is.
        share: of the compute of the run that cycles get, between 0 and 1.
        window: fractions of the run between which cycles run.
        samples: that `value_fn` sees, over those of a gradient step. 0.5 if fitness is taken over
            half as many.
        evolve_every: steps between cycles, in place of what `share` asks for.
        population_size: mirrored members of a cycle, an even number.
        sigma: standard deviation of the noise, a fraction of each leaf's root mean square.
        rank: of the noise.

    Returns:
        Arguments of `evolve`, mirrored members, low-rank noise, centered ranks over all of them.
        `is_due` takes `evolve_every` and `window` of them.

    Raises:
        TypeError: an argument is no number, or `window` no pair.
        ValueError: `sigma` or `samples` is not above zero. `share` is not between 0 and 1, or more
            than cycles can take. `window` does not rise from 0 to 1. No cycle would run.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, is_due, presets
        >>> settings = presets.metric(steps=2000, share=0.1, samples=0.5)
        >>> settings["evolve_every"], settings["window"]
        (48, (0, 1000))
        >>> is_due(960, 48, settings["window"]), is_due(1008, 48, settings["window"])
        (True, False)
        >>> tx = evolve(optax.adam(optax.cosine_decay_schedule(3e-3, 2000)), **settings)
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
    settings = {
        "population_size": population_size,
        "antithetic": True,
        "noise": noise.low_rank(rank),
        "recombine": recombine.centered_rank(),
        "accept": accept.always(),
    }
    if steps is None:
        every = interval(share, 1.0, population_size, samples, evolve_every)
        return {**settings, "evolve_every": every, "sigma": sigma}
    due = timetable(steps, share, window, population_size, samples, evolve_every)
    return {
        **settings,
        "evolve_every": due.evolve_every,
        "window": due.window,
        "sigma": optax.cosine_decay_schedule(2 * sigma, due.cycles, alpha=0.01),
    }
