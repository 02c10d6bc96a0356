"""No device holds a whole leaf that is sharded: neither of noise nor of a member."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax
import pytest

from egd_optax import evolve

SIZE = 64
KINDS = {
    "host": {},
    "replay": {"memory": "replay"},
    "low rank": {"noise": "low_rank"},
    "ranked": {
        "antithetic": True,
        "recombine": "centered_rank",
        "noise": "low_rank",
        "candidate_batch_size": 4,
    },
}


def loss(params):
    return sum(jnp.mean(leaf**2) for leaf in params)


def compiled_step(axis_type, **kwargs):
    """The program of one device of eight, for a matrix split by rows and one by columns."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    params = [
        jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in (PartitionSpec("x", None), PartitionSpec(None, "x"))
    ]
    tx = evolve(optax.sgd(0.1), evolve_every=1, **kwargs)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
        return step.lower(params, state, params).compile(), params


@pytest.mark.on_cpu
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("kind", KINDS)
def test_no_device_holds_a_whole_leaf(kind, axis_type):
    compiled, params = compiled_step(axis_type, **KINDS[kind])
    shapes = re.findall(r"(?:f32|u32)\[([\d,]+)\]", compiled.as_text())
    sizes = {shape: [int(side) for side in shape.split(",")] for shape in set(shapes)}
    assert f"{SIZE // 8},{SIZE}" in sizes
    assert not [shape for shape, sides in sizes.items() if sides[-2:] == [SIZE, SIZE]]
    updates, _ = compiled.output_shardings
    for ours, leaf in zip(updates, params, strict=True):
        assert ours.is_equivalent_to(leaf.sharding, leaf.ndim)
