"""Orbax's CheckpointManager: a run that was saved goes on with the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from egd_optax import evolve

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 6), "b": jnp.zeros(3)}
TX = evolve(optax.adam(1e-2), evolve_every=3, sigma=0.1)


def loss(params):
    return jnp.sum(jnp.sin(3 * params["w"]) ** 2) + jnp.sum((params["b"] - 1.0) ** 2)


@jax.jit
def step(params, state):
    updates, state = TX.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state


def steps(params, state, count):
    for _ in range(count):
        params, state = step(params, state)
    return params, state


def test_a_restored_run_goes_on_with_the_same_bits(tmp_path):
    start = (PARAMS, TX.init(PARAMS))
    saved = steps(*start, 4)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(4, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        assert manager.latest_step() == 4
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
        restored = manager.restore(4, args=ocp.args.StandardRestore(abstract))
    assert jax.tree.structure(restored) == jax.tree.structure(start)
    straight, resumed = steps(*saved, 5), steps(*restored, 5)
    assert int(saved[1].cycle) == 1
    assert int(resumed[1].cycle) == 3
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
