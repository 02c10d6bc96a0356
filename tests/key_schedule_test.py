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
FIRST = [0.527023435, -0.784263849, 0.713574171, -0.386143088], [0.328367949, -1.07779408]
SECOND = [-0.700808048, -1.20910907, 1.24501133, 0.98203826], [0.971115112, -0.899542093]
THIRD = [-0.751460671, -1.76126361, -0.168813586, -1.46987939], [-0.0368666053, -0.0273880959]
NEXT_CYCLE = [0.468867183, 0.0623783469, 0.409920633, -0.0450068414], [0.436376035, 1.60809231]
NEXT_GENERATION = [0.663589716, 0.947334886, -1.07165384, -1.0607717], [0.555122137, -2.16016865]
LOW_FIRST = [-0.203517586, 0.142970622, -0.795796871, 0.646263242], [0.328367949, -1.07779408]
LOW_SECOND = [-0.688264489, 0.174718559, -0.561289787, 0.914833903], [0.971115112, -0.899542093]
LOW_NEXT_CYCLE = [-0.0211055391, -0.913934231, 0.214804307, 0.0285675991], [0.436376035, 1.60809231]


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
            {1: FIRST, 3: THIRD, 7: NEXT_CYCLE},
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
