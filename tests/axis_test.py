"""Fitness is averaged over named axes, so that all replicas take the same decision."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, egd, evolve, noise, recombine

DATA = jax.random.normal(jax.random.key(1), (16, 5))
PARAMS = jnp.linspace(-1.0, 1.0, 5)


def loss(params, batch):
    return jnp.mean((batch @ params - 1.0) ** 2)


RANKED = {
    "population_size": 8,
    "generations": 2,
    "noise": noise.low_rank(),
    "antithetic": True,
    "recombine": recombine.centered_rank(),
    "execution": Execution(),
}
KINDS = {
    **{memory: {"execution": Execution(memory=memory)} for memory in ("host", "device", "replay")},
    "ranked": RANKED,
    "ranked, in batches": {**RANKED, "execution": Execution(candidate_batch_size=4)},
}


def optimizer(kind, axis_name=None):
    kwargs = dict(KINDS[kind])
    kwargs["execution"] = dataclasses.replace(kwargs["execution"], axis_name=axis_name)
    return egd(0.1, evolve_every=2, sigma=0.3, **kwargs)


def train_on_one_device(kind):
    tx = optimizer(kind)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        grads = jax.grad(loss)(params, DATA)
        updates, state = tx.update(grads, state, params, value_fn=loss, batch=DATA)
        params = optax.apply_updates(params, updates)
    return params, state.info


def replica_step(tx, axis_name):
    def step(params, state, batch):
        # Varying parameters would make jax sum their gradient over the replicas.
        grads = jax.lax.pmean(jax.grad(loss)(params, batch), axis_name)
        updates, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.exact
@pytest.mark.parametrize("kind", KINDS)
def test_pmap_replicas_agree_with_each_other_and_with_one_device(kind):
    tx = optimizer(kind, "batch")
    devices = 4
    replicate = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * devices), tree)  # noqa: E731
    params, state = replicate(PARAMS), replicate(tx.init(PARAMS))
    step = jax.pmap(replica_step(tx, "batch"), axis_name="batch")
    for _ in range(4):
        params, state = step(params, state, DATA.reshape(devices, 4, 5))
    for replica in range(1, devices):
        chex.assert_trees_all_equal(params[replica], params[0])
    expected, info = train_on_one_device(kind)
    np.testing.assert_allclose(params[0], expected, atol=2e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], state.info), info, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis_name", ["data", ("data", "more")])
def test_shard_map_replicas_agree_with_one_device(axis_name, kind):
    axis_names = ("data", "more")
    mesh = jax.make_mesh((2, 2), axis_names, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec
    tx = optimizer(kind, axis_name)
    batch_spec = spec(axis_name)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(spec(), spec(), batch_spec), out_specs=spec())
    def step(params, state, batch):
        varying = jax.lax.pcast(params, axis_name, to="varying")
        grads = jax.lax.pmean(jax.grad(loss)(varying, batch), axis_name)
        updates, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state, DATA)
    expected, info = train_on_one_device(kind)
    np.testing.assert_allclose(params, expected, atol=2e-5)
    chex.assert_trees_all_close(state.info, info, rtol=1e-4)


def test_value_fn_gets_only_the_extra_arguments_that_it_names():
    seen = {}

    def base_update(updates, state, params, **extra):
        seen.update(extra)
        return updates, state

    base = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), base_update)
    tx = evolve(base, evolve_every=1)

    def value_fn(params, batch, *, scale=1.0):
        return scale * loss(params, batch)

    extra = {"batch": DATA, "value": jnp.float32(2.0), "unrelated": "text"}
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=value_fn, **extra)
    np.testing.assert_allclose(state.info.parent_fitness, loss(2 * PARAMS, DATA), rtol=1e-6)
    assert seen.keys() == {"batch", "value", "unrelated", "value_fn"}
    np.testing.assert_allclose(seen["value_fn"](PARAMS, **extra), loss(PARAMS, DATA), rtol=1e-6)
