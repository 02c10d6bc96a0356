"""Every mode that optax's optimizers work in: what is committed, cast, mapped, differentiated."""

import jax
import jax.numpy as jnp
import optax

from egd_optax import egd


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
