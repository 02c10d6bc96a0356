"""Sums of products of factors: the way of a GPU gives the sums of the way of a CPU."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import pytest

from egd_optax.backend import products  # a GPU's way runs nowhere here through the public surface

SHAPES = {
    "a matrix": ((40, 96), (40, 1), (1, 96)),
    "a stack of matrices": ((3, 40, 96), (3, 40, 1), (3, 1, 96)),
    "a kernel": ((3, 3, 8, 16), (3, 3, 8, 1), (1, 1, 1, 16)),
}


def drawn(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_added_up_they_are_those_of_one_product(name, rank):
    shape, left, right = SHAPES[name]
    factors = drawn(0, (*left, rank)), drawn(1, (*right, rank))
    leaf = jnp.zeros(shape)
    expected = np.sum(np.asarray(factors[0]) * np.asarray(factors[1]), axis=-1)
    for sums in (products.product, products.added_up):
        np.testing.assert_allclose(jax.jit(sums)(*factors, leaf), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_added_up_they_are_divided_as_their_leaf(axis_type):
    mesh = Layout({"d": 4}, axis_type).mesh
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    leaf = jax.device_put(jnp.zeros((40, 96)), sharding)
    left, right = drawn(0, (40, 1, 3)), drawn(1, (1, 96, 3))
    with jax.set_mesh(mesh):
        total = jax.jit(products.added_up)(left, right, leaf)
    if axis_type == AxisType.Explicit:
        assert jax.typeof(total).sharding.spec == PartitionSpec("d", None)
    np.testing.assert_allclose(total, np.sum(left * right, axis=-1), rtol=1e-5, atol=1e-5)
