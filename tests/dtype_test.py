"""Parameters keep their dtype and land on the child exactly, whatever the dtype."""

import chex
import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, evolve, noise, recombine


def one_cycle(params, grads=None, **kwargs):
    """A step with a cycle: the child that `value_fn` saw, and where the step landed."""
    seen = []

    def score(params):
        seen.append(jax.tree.map(np.array, params))
        return np.float32(len(seen))

    def value_fn(params):
        return io_callback(score, jax.ShapeDtypeStruct((), jnp.float32), params)

    kwargs = {"recombine": recombine.mean(0.5), "sigma": 0.3, **kwargs}
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept="always", **kwargs)
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    updates, state = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn))(
        grads, tx.init(params), params
    )
    return seen[-1], optax.apply_updates(params, updates), state


def second_best(fitness):
    return jnp.array([0.0, 1.0])


def normal(shape, dtype):
    return jax.random.normal(jax.random.key(4), shape, jnp.float32).astype(dtype)


@pytest.mark.exact
@pytest.mark.parametrize("memory", ["host", "device", "replay"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_lands_on_the_child_exactly(dtype, memory):
    params = {"w": normal((60, 50), dtype), "zeros": jnp.zeros(20, dtype)}
    child, landed, _ = one_cycle(params, execution=Execution(memory=memory))
    chex.assert_trees_all_equal_dtypes(landed, params)
    chex.assert_trees_all_equal(landed, child)
    assert (landed["w"] != params["w"] - dtype(0.1)).mean() > 0.9


def test_float32_lands_within_rounding():
    params = normal((3000,), jnp.float32)
    child, landed, _ = one_cycle(params)
    np.testing.assert_allclose(landed, child, rtol=0, atol=5e-7)


@pytest.mark.exact
def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        params = {"w": jnp.linspace(-1, 1, 50, dtype=jnp.float64), "f32": jnp.ones(5, jnp.float32)}
        child, landed, state = one_cycle(params)
        chex.assert_trees_all_equal_dtypes(landed, params)
        np.testing.assert_allclose(landed["w"], child["w"], rtol=0, atol=1e-15)
        assert state.info.best_fitness.dtype == jnp.float64
        assert np.abs(child["w"].astype(np.float32) - child["w"]).max() > 0
        chex.assert_trees_all_equal_shapes_and_dtypes(state, evolve(optax.sgd(0.1)).init(params))


def test_noise_is_the_same_in_every_precision():
    params = normal((500,), jnp.float32)
    kwargs = {"noise": noise.gaussian(relative=False), "recombine": recombine.mean(1.0)}
    single = one_cycle(params, jnp.zeros(500), **kwargs)[0] - params
    with jax.enable_x64(True):
        wide = params.astype(jnp.float64)
        double = one_cycle(wide, jnp.zeros_like(wide), **kwargs)[0] - wide
    np.testing.assert_allclose(single, double, atol=1e-6)


def test_complex_leaves_move_in_both_components_with_half_the_variance_each():
    params = jnp.zeros(20000, jnp.complex64)
    child, landed, _ = one_cycle(
        params,
        population_size=2,
        sigma=0.5,
        noise=noise.gaussian(relative=False),
        recombine=recombine.elite_weights(second_best, elite_fraction=1.0),
    )
    drawn = child + 0.1  # the base step
    np.testing.assert_allclose(landed, child, atol=1e-6)
    assert landed.dtype == jnp.complex64
    for part in (drawn.real, drawn.imag):
        np.testing.assert_allclose(part.std(), 0.5 / np.sqrt(2), rtol=0.03)
    np.testing.assert_allclose(np.mean(np.abs(drawn) ** 2), 0.25, rtol=0.03)


@pytest.mark.parametrize("memory", ["host", "device", "replay"])
def test_odd_leaves(memory):
    params = {
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(2.0),
        "zeros": jnp.zeros(4),
        "integers": jnp.arange(3),
        "flags": jnp.array([True, False]),
        "nothing": None,
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    _, landed, _ = one_cycle(params, grads, execution=Execution(memory=memory))
    chex.assert_trees_all_equal_shapes_and_dtypes(landed, params)
    chex.assert_trees_all_equal(landed["integers"], params["integers"])
    chex.assert_trees_all_equal(landed["flags"], params["flags"])
    assert landed["scalar"] != params["scalar"]
    assert (landed["zeros"] != 0).all()


def test_zero_leaves_move_by_sigma_times_min_scale():
    params = jnp.zeros(5000)
    child, _, _ = one_cycle(
        params,
        jnp.zeros(5000),
        population_size=2,
        sigma=0.1,
        noise=noise.gaussian(min_scale=0.02),
        recombine=recombine.elite_weights(second_best, elite_fraction=1.0),
    )
    np.testing.assert_allclose(child.std(), 0.1 * 0.02, rtol=0.05)


def test_params_may_be_a_single_array():
    child, landed, _ = one_cycle(jnp.float32(3.0))
    np.testing.assert_allclose(landed, child, atol=1e-6)
