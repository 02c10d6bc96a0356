"""Every mode that optax's optimizers work in: what is committed, cast, mapped, differentiated."""

import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import egd, evolve


def _loss(params):
    return jnp.sum((params - 2.0) ** 2)


def test_a_step_from_committed_parameters_and_state_compiles_once():
    compiled = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    tx = egd(1e-2, momentum=0.9, evolve_every=3)
    params = jnp.ones((3, 4))
    params, state = jax.device_put((params, tx.init(params)), jax.devices()[0])

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(_loss)(params), state, params, value_fn=_loss)
        return optax.apply_updates(params, updates), state

    jax.block_until_ready((params, state))
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for _ in range(4):
            params, state = step(params, state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiled) == 1


_STATES = {"floats cast to bfloat16": (False, False), "x64 after init": (False, True)}
_STATES["init under x64"] = (True, False)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("how", _STATES)
def test_a_state_keeps_the_dtypes_that_it_came_in_with(how, traced):
    at_init, at_update = _STATES[how]
    tx = evolve(optax.adam(1e-2), evolve_every=2)
    params = jnp.ones(4)
    with jax.enable_x64(at_init):
        state = tx.init(params)
    if "bfloat16" in how:
        state = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def step(state):
        return tx.update(jax.grad(_loss)(params), state, params, value_fn=_loss)[1]

    with jax.enable_x64(at_update):
        after = state
        for _ in range(2):
            after = (jax.jit(step) if traced else step)(after)
    assert int(after.cycle) == 1
    assert jnp.isfinite(after.info.parent_fitness)

    def dtypes(state):
        with jax.enable_x64(at_update):  # float64 is not to be had without
            return [
                jax.dtypes.canonicalize_dtype(leaf.dtype)
                for leaf in (state.count, state.cycle, state.key_data, *state.info)
            ]

    assert dtypes(after) == dtypes(state)
