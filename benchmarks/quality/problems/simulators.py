"""A simulator whose parameters are found from what it did."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.problem import Params, Problem
from benchmarks.quality.problems import controls, samples

SITES, STEP, STEPS = 24, 0.05, 10
# Standard deviation of what is observed, whose own is about 3.6.
NOISE = 0.3


def lorenz_96() -> Problem:
    """Which forcing drives each of 24 sites, from states and what became of them; 24 parameters.

    Lorenz 1996, "Predictability: a problem partly solved", with a forcing for each site. States
    are observed with noise, as is what becomes of them within 10 steps, in which a small error
    grows to 2.7 times its size: no score is zero. What is minimised and published is the squared
    error over the variance; the true forcings have 0.055.
    """
    rng = np.random.default_rng(controls.SEED)
    forcing = 8 + 2 * rng.normal(size=SITES)
    train, held_out = 4_000, 1_000
    size = train + 2 * held_out
    simulate = jax.jit(_after, static_argnames="steps")
    # From anywhere to where all trajectories end up.
    start = simulate(forcing, forcing + rng.normal(size=(size, SITES)), steps=400)
    end = simulate(forcing, start, steps=STEPS)
    deviation = float(np.std(end))
    observed = (np.asarray(x) + NOISE * rng.normal(size=x.shape) for x in (start, end))
    before, after = observed

    def network(params: Params, inputs: jax.Array) -> jax.Array:
        return _after(8 + params["forcing"], inputs, STEPS) / deviation

    return controls.regression(
        "lorenz_96",
        samples.split(before, after / deviation, held_out),
        lambda key: {"forcing": 2 * jax.random.normal(key, [SITES])},
        network,
        budget=100_000,
    )


def _after(forcing: jax.Array, states: jax.Array, steps: int) -> jax.Array:
    """States `[n, sites]` so many steps of a Runge-Kutta method of fourth order later."""

    def slope(x: jax.Array) -> jax.Array:
        ahead, behind, two_behind = (jnp.roll(x, shift, axis=-1) for shift in (-1, 1, 2))
        return (ahead - two_behind) * behind - x + forcing

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        k1 = slope(x)
        k2 = slope(x + STEP / 2 * k1)
        k3 = slope(x + STEP / 2 * k2)
        k4 = slope(x + STEP * k3)
        return x + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return lax.scan(step, jnp.asarray(states, jnp.float32), length=steps)[0]
