"""Fitness is averaged over named axes, so that all replicas take the same decision."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
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


@pytest.mark.wide
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


@pytest.mark.crossed(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis_name", ["data", ("data", "more")])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_shard_map_replicas_agree_with_one_device(axis_name, kind, axis_type):
    axis_names = ("data", "more")
    mesh = jax.make_mesh((2, 2), axis_names, axis_types=(axis_type,) * 2)
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

    place = lambda tree, to: jax.device_put(tree, NamedSharding(mesh, to))  # noqa: E731
    params, state = place((PARAMS, tx.init(PARAMS)), spec())
    batch = place(DATA, batch_spec)
    for _ in range(4):
        params, state = step(params, state, batch)
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


MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def shards(tx, mapping):
    """The parameters of four replicas after four steps, each on its own part of the batch."""
    batches = DATA.reshape(4, 4, 5)
    state = tx.init(PARAMS)
    step = replica_step(tx, "data")

    def run(batch):
        params, own = PARAMS, state
        for _ in range(4):
            params, own = step(params, own, batch)
        return params

    if mapping == "pmap":
        return jax.pmap(run, axis_name="data")(batches)
    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(
        lambda batch: run(batch[0])[None],
        mesh=MESH,
        in_specs=spec,
        out_specs=spec,
        check_vma=mapping == "tracked",
    )
    return jax.jit(sharded)(batches)


@pytest.mark.wide
@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_a_mapped_axis_that_is_not_named_is_an_error_where_replicas_would_drift(mapping):
    with pytest.raises(ValueError, match="`axis_name` must name the mapped axes, got None.*'data'"):
        shards(egd(0.1, evolve_every=2, sigma=0.3), mapping)
    named = shards(optimizer("host", axis_name="data"), mapping)
    assert (named == named[0]).all()


@pytest.mark.wide
@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_no_axis_can_be_named_where_each_device_has_a_model_of_its_own(mapping):
    own = shards(optimizer("host", axis_name=()), mapping)
    assert not (own == own[0]).all()


@pytest.mark.parametrize("axis_name", [None, ()])
def test_where_jax_keeps_track_of_replicas_the_error_names_the_axis(axis_name):
    with pytest.raises(ValueError, match="`axis_name` must name the mapped axes, got .*'data', al"):
        shards(optimizer("host", axis_name), "tracked")


def test_along_an_axis_without_a_name_nothing_can_be_averaged():
    tx = optimizer("host")
    step = lambda batch: tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss, batch=batch)[0]  # noqa: E731
    assert jax.pmap(step)(DATA.reshape(4, 4, 5)).shape == (4, 5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_axis_beside_that_of_the_population_is_not_forgotten(axis_type):
    mesh = jax.make_mesh((2, 2), ("pop", "data"), axis_types=(axis_type,) * 2)
    batch = jax.device_put(DATA, NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

    def step(batch, **axes):
        tx = egd(0.1, evolve_every=1, execution=Execution(population_axis="pop", **axes))
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss, batch=batch)[0]

    def sharded(**axes):
        spec = jax.sharding.PartitionSpec
        return jax.shard_map(
            lambda batch: step(batch, **axes), mesh=mesh, in_specs=spec("data"),
            out_specs=spec(), check_vma=False,
        )  # fmt: skip

    with pytest.raises(ValueError, match="`axis_name` must name the mapped axes, got None.*'data'"):
        jax.eval_shape(sharded(), batch)
    assert jax.eval_shape(sharded(axis_name="data"), batch).shape == (5,)
