"""Strategies without gradients: `update` takes None for them, and holds no zeros."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from layouts import Layout
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, ask_tell, evolve, noise, recombine

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 256).reshape(16, 16), "b": jnp.ones(5)}
SETTINGS = {
    "evolve_every": 1, "antithetic": True, "sigma": 0.1, "noise": noise.gaussian(relative=False),
    "recombine": recombine.centered_rank(), "accept": accept.always(),
}  # fmt: skip
STILL = {
    "zero": optax.set_to_zero(),
    "chain": optax.chain(optax.set_to_zero(), optax.set_to_zero()),
    "decay": optax.chain(optax.set_to_zero(), optax.add_decayed_weights(-0.1)),
}


def loss(params):
    return sum(jnp.sum((leaf - 0.5) ** 2) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("base", STILL)
def test_none_stands_for_zeros(base, jit):
    tx = evolve(STILL[base], **SETTINGS)

    def step(updates, state):
        return tx.update(updates, state, PARAMS, value_fn=loss)

    step = jax.jit(step) if jit else step
    state = tx.init(PARAMS)
    found = step(None, state)
    chex.assert_trees_all_equal(found, step(jax.tree.map(jnp.zeros_like, PARAMS), state))
    assert found[1].info.accepted


def test_a_step_without_a_cycle_moves_nothing():
    tx = evolve(optax.set_to_zero(), evolve_every=9)
    for kwargs in ({"evolve": False}, {"value_fn": loss}):
        updates, state = tx.update(None, tx.init(PARAMS), PARAMS, **kwargs)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
        assert int(state.count) == 1


@pytest.mark.parametrize(
    "base", [optax.sgd(0.1), optax.adam(0.1), optax.identity(), optax.sign_sgd(0.1)]
)
def test_a_base_that_follows_gradients_asks_for_them(base):
    tx = evolve(base)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"`updates` must be the gradients, got None.*set_to_zero"):
        tx.update(None, state, PARAMS, value_fn=loss)
    with pytest.raises(ValueError, match="`updates` must be the gradients, got None"):
        ask_tell.ask(tx, None, state, PARAMS)


def test_leaves_of_every_kind():
    params = {
        "small": jnp.ones(3, jnp.bfloat16),
        "complex": jnp.ones((2, 2), jnp.complex64),
        "index": jnp.arange(4),
        "number": 0.5,
        "masked": optax.MaskedNode(),
        "none": None,
        "function": jnp.tanh,
    }

    def value_fn(params):
        return jnp.sum(params["small"].astype(jnp.float32)) + jnp.abs(params["complex"]).sum()

    tx = evolve(optax.set_to_zero(), **SETTINGS)
    updates, _ = tx.update(None, tx.init(params), params, value_fn=value_fn)
    assert updates["function"] is None
    np.testing.assert_array_equal(updates["index"], 0)
    for name in ("small", "complex"):
        assert updates[name].dtype == params[name].dtype
        assert jnp.any(updates[name] != 0)


@pytest.mark.exact
@pytest.mark.parametrize("population_size", [4, 32])
@pytest.mark.parametrize(
    ("kind", "evaluate", "most"),
    [
        (noise.gaussian(relative=False), "formed", 2.1),
        (noise.low_rank(relative=False), "formed", 1.15),
        (noise.low_rank(relative=False), "factored", 1.15),
    ],
    ids=["gaussian", "low rank", "factored"],
)
def test_a_strategy_takes_little_more_than_inference(kind, evaluate, most, population_size):
    """Donated: beside the parameters one copy or two, of which the updates are made."""
    depth, width = 16, 512
    params = [jnp.ones((width, width))] * depth
    settings = SETTINGS | {"noise": kind, "population_size": population_size}
    chunk = 2 if evaluate == "factored" else None  # its activations are held, too
    execution = Execution(memory="replay", evaluate=evaluate, candidate_batch_size=chunk)
    tx = evolve(optax.set_to_zero(), **settings, execution=execution)

    def value_fn(params):
        hidden = jnp.ones((2, width))
        for matrix in params:
            hidden = jnp.tanh(hidden @ matrix)
        return jnp.mean(hidden)

    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params))
    memory = lowered.compile().memory_analysis()
    size = 4 * depth * width**2
    assert memory.argument_size_in_bytes < 1.01 * size
    assert memory.temp_size_in_bytes / size < most


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("execution", [Execution(), Execution(population_axis="pop")], ids=repr)
def test_sharded_parameters(axis_type, execution):
    tx = evolve(optax.set_to_zero(), **SETTINGS, execution=execution)
    layout = Layout({"pop": 2, "fsdp": 4}, axis_type)
    alone, _ = evolve(optax.set_to_zero(), **SETTINGS).update(
        None, tx.init(PARAMS), PARAMS, value_fn=loss
    )
    with jax.set_mesh(layout.mesh):
        specs = {"w": jax.sharding.PartitionSpec("fsdp"), "b": jax.sharding.PartitionSpec()}
        params = layout.place(PARAMS, specs)
        step = jax.jit(lambda state, params: tx.update(None, state, params, value_fn=loss))
        updates, _ = step(tx.init(params), params)
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(alone), atol=1e-5)
