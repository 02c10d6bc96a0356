"""The same run on any number of devices, in any layout, gives the same parameters."""

import functools

import chex
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout, advance, gradient, optimizer, restored, start, step_of, train
import numpy as np
import orbax.checkpoint as ocp
import pytest

from egd_optax import Execution, accept, noise, recombine
from egd_optax.core import child, select
from xla_options import known

MEMORY = ("host", "device", "replay")
ONE = Layout({"data": 1})
RANKED = {
    "population_size": 16,
    "antithetic": True,
    "recombine": recombine.centered_rank(),
    "generations": 2,
    "noise": noise.low_rank(),
}
KINDS = {
    "mean": {},
    "softmax": {"recombine": recombine.softmax(temperature=0.1), "accept": accept.always()},
    "ranked": RANKED,
    "ranked, formed": {**RANKED, "execution": Execution(evaluate="formed")},
    "in batches": {"population_size": 17, "execution": Execution(candidate_batch_size=2)},
}
LAYOUTS = {
    "data of 2": Layout({"data": 2}),
    "data of 4": Layout({"data": 4}),
    "data": Layout({"data": 8}),
    "fsdp": Layout({"fsdp": 8}),
    "data, fsdp": Layout({"data": 2, "fsdp": 4}),
    "pop, data": Layout({"pop": 4, "data": 2}),
    "pop, data, fsdp": Layout({"pop": 2, "data": 2, "fsdp": 2}),
}


@pytest.fixture
def elites_seen(monkeypatch):
    """The members that recombine in every cycle, best first, which no user is told."""
    seen = []
    terms_of = child.terms_of

    def see(members, fitness):
        seen.append(tuple(members[np.lexsort((members, fitness))].tolist()))

    def watched(weights, fitness, support, slots, **kwargs):
        elites = select.slots_of(fitness, support) if slots is None else slots
        jax.debug.callback(see, elites.member, elites.fitness)
        return terms_of(weights, fitness, support, slots, **kwargs)

    monkeypatch.setattr(child, "terms_of", watched)
    return seen


@functools.cache
def on_one_device(kind):
    return jax.device_get(train(ONE, **KINDS[kind]))


def assert_same_run(run, kind):
    params, state = jax.device_get(run)
    expected, expected_state = on_one_device(kind)
    assert bool(expected_state.info.accepted)
    chex.assert_trees_all_close(params, expected, atol=2e-5, rtol=0)
    chex.assert_trees_all_close(state.info, expected_state.info, rtol=1e-4)
    np.testing.assert_array_equal(state.key_data, expected_state.key_data)


def assert_sharded(params, layout, names):
    for name in names:
        expected = NamedSharding(layout.mesh, layout.params[name])
        assert params[name].sharding.is_equivalent_to(expected, params[name].ndim)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    ("layout", "memory"),
    [
        *((layout, memory) for layout in ("data", "fsdp", "data, fsdp") for memory in MEMORY),
        *((layout, "host") for layout in ("data of 2", "data of 4")),
        *(("pop, data", memory) for memory in MEMORY),
        ("pop, data, fsdp", "host"),  # where members are divided no mode stores an elite
    ],
)
def test_layouts_agree_on_parameters_and_elites(layout, memory, elites_seen):
    layout = LAYOUTS[layout]
    train(ONE)
    jax.effects_barrier()
    first, second = elites_seen
    assert first != second
    params, state = train(layout, execution=Execution(memory=memory))
    jax.effects_barrier()
    assert set(elites_seen) == {first, second}
    assert_same_run((params, state), "mean")
    assert_sharded(params, layout, names=("w0", "w1"))  # XLA chooses for the bias, as with optax


@pytest.mark.wide
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("softmax", "data, fsdp"),
        ("in batches", "pop, data, fsdp"),
        ("ranked", "pop, data, fsdp"),
    ],
)
def test_layouts_agree_for_every_rule(kind, layout, axis_type):
    layout = LAYOUTS[layout]._replace(axis_type=axis_type)
    if (kind, axis_type) == ("ranked", AxisType.Explicit):
        kind = "ranked, formed"  # as members are there
    run = train(layout, **KINDS[kind])
    assert_same_run(run, kind)
    assert_sharded(run[0], layout, names=run[0] if axis_type == AxisType.Explicit else ("w0", "w1"))


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize(
    ("kind", "devices"),
    [("mean", 1), ("mean", 2), ("mean", 4), ("mean", 8), ("ranked", 8), ("in batches", 8)],
)
def test_a_divided_population_gives_the_same_bits(kind, devices):
    expected, state = train(ONE, exact=True, **KINDS[kind])
    assert bool(state.info.accepted)
    params, _ = train(Layout({"pop": devices}), exact=True, **KINDS[kind])
    chex.assert_trees_all_equal(*jax.device_get((params, expected)))


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["mean", "ranked"])
def test_divided_inside_of_shard_map(kind):
    layout = LAYOUTS["pop, data"]
    execution = Execution(axis_name="data", population_axis="pop")
    tx = optimizer(execution=execution, **KINDS[kind])

    def step(params, state, batch):
        varying = jax.lax.pcast(params, "data", to="varying")
        grads = jax.lax.pmean(gradient(varying, batch), "data")
        return step_of(tx, lambda *_: grads)(params, state, batch)

    spec = PartitionSpec()
    step = jax.jit(
        jax.shard_map(step, mesh=layout.mesh, in_specs=(spec, spec, layout.batch), out_specs=spec),
        compiler_options=known("hurried"),
    )
    params, state = advance(step, *start(layout, tx))
    for leaf in jax.tree.leaves(params):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        chex.assert_trees_all_equal(*shards)
    assert_same_run((params, state), kind)


@pytest.mark.wide
def test_divided_inside_of_pmap():
    tx = optimizer(execution=Execution(population_axis="pop"))
    params, state, batch = start(ONE, tx)
    copies = jax.tree.map(lambda x: np.stack([x] * 8), jax.device_get((params, state)))
    step = jax.pmap(step_of(tx), axis_name="pop", in_axes=(0, 0, None))
    params, state = advance(step, *copies, jax.device_get(batch))
    for replica in range(1, 8):
        for leaf in params.values():
            np.testing.assert_array_equal(leaf[replica], leaf[0])
    assert_same_run(jax.tree.map(lambda x: x[0], (params, state)), "mean")


@pytest.mark.wide
@pytest.mark.parametrize(
    ("before", "after"),
    [({"data": 8}, {"pop": 2, "data": 2, "fsdp": 2}), ({"pop": 2, "fsdp": 4}, {"data": 1})],
)
def test_a_checkpoint_continues_on_another_mesh(tmp_path, before, after):
    before, after = Layout(before), Layout(after)
    params, state = train(before, steps=3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "three", {"params": params, "state": state})

    tx = optimizer(execution=Execution(population_axis="pop" if "pop" in after.sizes else None))
    with jax.set_mesh(after.mesh):
        _, _, batch = start(after, tx)
        params, state = restored(tmp_path / "three", after, tx)
        run = jax.jit(step_of(tx), compiler_options=known("hurried"))(params, state, batch)
    assert_same_run(run, "mean")
