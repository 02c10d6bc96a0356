"""No device holds a whole leaf that is sharded: neither of noise nor of a member."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import PLAIN, Layout
import optax
import pytest

from egd_optax import Execution, accept, evolve, noise, recombine
from xla_options import known

pytestmark = pytest.mark.exact

SIZE = 256  # smaller leaves may be whole on every device
KINDS = {
    "host": {},
    "replay": {"execution": Execution(memory="replay")},
    "low rank": {"noise": noise.low_rank()},
    "ranked": {
        "antithetic": True,
        "recombine": recombine.centered_rank(),
        "noise": noise.low_rank(),
        "execution": Execution(candidate_batch_size=4),
    },
}


def loss(params):
    return sum(jnp.mean(leaf**2) for leaf in params)


def compiled_step(sizes, axis_type=AxisType.Auto, size=SIZE, execution=PLAIN, **kwargs):
    """The program of one device, for a matrix split by rows and one by columns."""
    mesh = Layout(sizes, axis_type).mesh
    params = [
        jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in (PartitionSpec("fsdp", None), PartitionSpec(None, "fsdp"))
    ]
    axis = "pop" if "pop" in sizes else None
    execution = dataclasses.replace(execution, population_axis=axis)
    tx = evolve(optax.sgd(0.1), evolve_every=1, execution=execution, **kwargs)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
        return step.lower(params, state, params).compile(known("read")), params


@pytest.mark.crossed(1)
@pytest.mark.on_cpu
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *((kind, {"fsdp": 8}) for kind in KINDS),
        ("host", {"pop": 2, "fsdp": 4}),
        ("ranked", {"pop": 2, "fsdp": 4}),
        ("host", {"pop": 2, "data": 2, "fsdp": 2}),
    ],
)
def test_no_device_holds_a_whole_leaf(kind, sizes, axis_type):
    compiled, params = compiled_step(sizes, axis_type, **KINDS[kind])
    program = compiled.as_text()
    shapes = {
        shape: [int(side) for side in shape.split(",")]
        for shape in re.findall(r"(?:f32|u32)\[([\d,]+)\]", program)
    }
    shards = sizes["fsdp"]
    assert f"{SIZE // shards},{SIZE}" in shapes
    assert not [shape for shape, sides in shapes.items() if sides[-2:] == [SIZE, SIZE]]
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", program)
    parts = SIZE * SIZE // shards  # of the child, along the population axis
    assert all(math.prod(shapes[shape]) <= parts for shape in gathered)
    assert "pop" not in sizes or any(math.prod(shapes[shape]) == parts for shape in gathered)
    updates, _ = compiled.output_shardings
    for ours, leaf in zip(updates, params, strict=True):
        assert ours.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.wide
@pytest.mark.on_cpu
def test_memory_is_divided_by_the_shards():
    one, eight = (
        compiled_step({"fsdp": shards}, size=512)[0].memory_analysis().temp_size_in_bytes
        for shards in (1, 8)
    )
    assert eight < 1.25 * one / 8


def test_host_pages_are_sharded_like_the_leaf():
    mesh = Layout({"fsdp": 8}, AxisType.Explicit).mesh
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", None))
    params = [jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32, sharding=sharding)]
    tx = evolve(optax.sgd(0.1), evolve_every=1)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        traced = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss)).trace(
            params, state, params
        )
    pages = re.findall(r"f32<host>\[([^]]*)\]", str(traced.jaxpr))
    assert pages
    assert set(pages) == {f"1,{SIZE}@fsdp,{SIZE}"}


def test_each_device_computes_its_share_of_a_population():
    inputs = jnp.ones((256, 32))

    def value_fn(params):
        return jnp.mean((jnp.tanh(inputs @ params[0]) @ params[1]) ** 2)

    def flops(devices):
        mesh = Layout({"pop": devices}).mesh
        params = [jnp.ones((32, 32)), jnp.ones((32, 64))]
        execution = Execution(population_axis="pop", mesh=mesh, candidate_batch_size=64 // devices)
        tx = evolve(
            optax.set_to_zero(), evolve_every=1, population_size=64, execution=execution,
            accept=accept.always(), antithetic=True,
        )  # fmt: skip
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn))
        compiled = step.lower(params, tx.init(params), params).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(8) < 1.2 * flops(1) / 8
