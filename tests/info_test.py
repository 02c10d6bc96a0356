"""`info.update_norm`: how far a cycle moved, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve, noise, recombine
from egd_optax.backend import packing

DRAW = np.random.default_rng(3).normal
PARAMS = {
    "large": jnp.asarray(DRAW(0, 1, packing.LARGEST + 7), jnp.float32),
    "small": jnp.asarray(DRAW(0, 1, (5, 13)), jnp.float32),
    "alike": jnp.asarray(DRAW(0, 1, (5, 13)), jnp.float32),
    "few digits": jnp.asarray(DRAW(0, 1, 9), jnp.bfloat16),
    "complex": jnp.asarray(DRAW(0, 1, 6) + 1j * DRAW(0, 1, 6), jnp.complex64),
}


def loss(params):
    return sum(jnp.sum(jnp.abs(leaf - 0.5).astype(jnp.float32)) for leaf in params.values())


def norm_of(tree):
    leaves = [np.asarray(leaf).astype(np.complex128) for leaf in jax.tree.leaves(tree)]
    return np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in leaves))


@pytest.mark.parametrize("generations", [1, 3])
@pytest.mark.parametrize("kind", [noise.gaussian(), noise.low_rank()], ids=repr)
def test_it_is_the_jump_over_the_parameters(kind, generations):
    tx = evolve(
        optax.sgd(0.01), evolve_every=2, sigma=0.1, noise=kind, generations=generations,
        recombine=recombine.centered_rank(), accept=accept.always(),
    )  # fmt: skip
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    step = jax.jit(lambda state: tx.update(grads, state, PARAMS, value_fn=loss))
    base, state = step(tx.init(PARAMS))
    assert state.info.update_norm == 0
    updates, state = step(state)
    jump = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), updates, base)
    # The few digits of an update are rounded once more in this difference.
    np.testing.assert_allclose(state.info.update_norm, norm_of(jump) / norm_of(PARAMS), rtol=1e-3)
    # An idle step keeps the report.
    assert step(state)[1].info.update_norm == state.info.update_norm


def test_a_cycle_that_stays_moves_nothing():
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=accept.improved())
    params = {"w": jnp.zeros(4)}
    _, state = tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"] ** 2))
    assert not state.info.accepted
    assert state.info.update_norm == 0


def test_parameters_of_zero_have_a_finite_norm():
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=accept.always())
    params = {"w": jnp.zeros(4)}
    _, state = tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"]))
    assert state.info.accepted
    assert jnp.isfinite(state.info.update_norm)
    assert state.info.update_norm > 0
