"""The switches of JAX that people debug with: a step runs as that of plain optax does."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, evolve, noise, recombine

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}


def loss(params):
    return jnp.sum((params["w"] - 0.3) ** 2) + jnp.sum(params["b"] ** 2)


SWITCHES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfer guard": lambda: jax.transfer_guard("log"),
    "leak checks": jax.checking_leaks,
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "no partitionable": lambda: jax.threefry_partitionable(False),
    "high precision": lambda: jax.default_matmul_precision("highest"),
}
SETTINGS = {
    "default": {},
    "pairs in batches": {
        "antithetic": True,
        "recombine": recombine.centered_rank(),
        "execution": Execution(candidate_batch_size=4),
        "es_optimizer": optax.sgd(0.5, 0.9),
        "reset_base": True,
    },
    "low rank": {
        "noise": noise.low_rank(),
        "generations": 2,
        "execution": Execution(evaluate="factored", memory="replay"),
    },
}


def steps(tx, jit, **extra):
    """Two steps, of which a cycle is due on the second."""
    update = jax.jit(lambda *args: tx.update(*args, **extra)) if jit else tx.update
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        grads = jax.grad(loss)(params)
        updates, state = (
            update(grads, state, params) if jit else update(grads, state, params, **extra)
        )
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.filterwarnings("ignore")
@pytest.mark.crossed(12)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_step_is_the_same_under_a_switch(switch, setting, jit):
    make = lambda: evolve(optax.sgd(0.1, 0.9), evolve_every=2, sigma=0.3, **SETTINGS[setting])  # noqa: E731
    expected = steps(make(), jit, value_fn=loss)
    with contextlib.ExitStack() as stack:
        stack.enter_context(SWITCHES[switch]())
        steps(optax.sgd(0.1, 0.9), jit)  # plain optax does; its Adam not under each
        found = steps(make(), jit, value_fn=loss)
    chex.assert_trees_all_close(found, expected, atol=1e-5)
