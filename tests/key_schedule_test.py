"""The noise of (key, cycle, member, leaf), pinned: a refactoring may not change anybody's run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve, noise

pytestmark = pytest.mark.exact

FULL = noise.gaussian(relative=False)
LOW = noise.low_rank(relative=False)
KEY = 7
# Members of key 7 around zeros, at a sigma of one: the first row of leaf "a" and leaf "b".
FIRST = [-1.07232809, -0.614835739, -0.791622877, -1.43118286], [-0.786057115, 0.44012785]
SECOND = [-2.12948799, -0.923794031, 0.0741288066, 0.884230018], [-0.64614284, -2.11164474]
NEXT_CYCLE = [-0.479788601, -1.39557028, -1.46208978, -0.693373322], [0.680745721, -2.08744812]
NEXT_GENERATION = [-0.973806024, -1.34420419, 1.39123654, -0.523645401], [1.61603642, 1.88443708]
LOW_FIRST = [-0.265383124, 0.0931622386, 0.434298992, -0.212437391], [-0.786057115, 0.44012785]
LOW_SECOND = [-1.8100884, -4.22856617, -0.354373813, -1.76848912], [-0.64614284, -2.11164474]
LOW_NEXT_CYCLE = [0.129713863, -0.476691127, -0.117796585, 0.237818509], [0.680745721, -2.08744812]


def evaluated(cycles=2, **kwargs):
    """All that `value_fn` sees, which finds everything equal, so that each parent stands."""
    seen = []

    def value_fn(params):
        jax.debug.callback(lambda member: seen.append(member), params, ordered=True)
        return 0 * params["a"].sum()

    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(2)}
    tx = evolve(
        optax.identity(), evolve_every=1, sigma=1.0, accept=accept.improved(), key=KEY, **kwargs
    )
    step = jax.jit(lambda state: tx.update(params, state, params, value_fn=value_fn)[1])
    state = tx.init(params)
    for _ in range(cycles):
        state = step(state)
        jax.effects_barrier()
    return seen


@pytest.mark.crossed(2)
@pytest.mark.on_cpu  # JAX passes no ordered effect through a program that uses host memory
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"noise": FULL, "population_size": 3}, {1: FIRST, 2: SECOND, 5: NEXT_CYCLE}),
        (
            {"noise": FULL, "population_size": 4, "antithetic": True},
            {1: FIRST, 3: SECOND, 7: NEXT_CYCLE},  # a pair is one draw
        ),
        ({"noise": LOW, "population_size": 3}, {1: LOW_FIRST, 2: LOW_SECOND, 5: LOW_NEXT_CYCLE}),
        (
            {"noise": FULL, "population_size": 3, "generations": 2},
            {1: FIRST, 2: SECOND, 5: NEXT_GENERATION, 9: NEXT_CYCLE},
        ),
    ],
    ids=["full rank", "antithetic", "low rank", "generations"],
)
def test_the_noise_of_a_key_is_pinned(kwargs, expected):
    seen = evaluated(**kwargs)
    for at, (first_row, vector) in expected.items():
        np.testing.assert_allclose(seen[at]["a"][0], first_row, rtol=1e-6)
        np.testing.assert_allclose(seen[at]["b"], vector, rtol=1e-6)
        if kwargs.get("antithetic"):
            mirrored = jax.tree.map(np.negative, seen[at])
            jax.tree.map(np.testing.assert_array_equal, seen[at + 1], mirrored)
