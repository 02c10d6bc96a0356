"""Optimistix: OptaxMinimiser over an optimizer that evolves."""

import jax.numpy as jnp
import optax
import optimistix as optx
import pytest

from egd_optax import bind_value_fn, evolve

TX = evolve(optax.adam(0.02), evolve_every=10, population_size=16, sigma=0.5)
START = {"x": jnp.array([2.2, -1.9])}
STEPS = 40


def rastrigin(y, args):
    x = y["x"]
    return jnp.sum(x**2 + args * (1 - jnp.cos(2 * jnp.pi * x)))


# It passes its own function as `value_fn` on; a bound one stands where it passes none.
@pytest.mark.parametrize("tx", [TX, bind_value_fn(TX, lambda y: rastrigin(y, 10.0))])
def test_a_minimiser_evolves(tx):
    solver = optx.OptaxMinimiser(tx, rtol=0.0, atol=0.0)
    solution = optx.minimise(rastrigin, solver, START, 10.0, max_steps=STEPS, throw=False)
    assert int(solution.stats["num_steps"]) == STEPS
    assert int(solution.state.opt_state.cycle) == STEPS // 10
    # Adam alone ends in the nearest minimum.
    alone = optx.OptaxMinimiser(optax.adam(0.02), rtol=0.0, atol=0.0)
    nearest = optx.minimise(rastrigin, alone, START, 10.0, max_steps=STEPS, throw=False)
    assert rastrigin(solution.value, 10.0) < 0.8 * rastrigin(nearest.value, 10.0)
