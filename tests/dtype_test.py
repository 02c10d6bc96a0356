"""Parameters keep their dtype and land on the child exactly, whatever the dtype."""

import chex
import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rules import ACCEPT, Finite

from egd_optax import Execution, evolve, noise, presets, recombine
from egd_optax.backend import arithmetic


def one_cycle(params, grads=None, **kwargs):
    """A step with a cycle: the child that `value_fn` saw, and where the step landed."""
    seen = []

    def score(params):
        seen.append(jax.tree.map(np.array, params))
        return np.float32(len(seen))

    def value_fn(params):
        return io_callback(score, jax.ShapeDtypeStruct((), jnp.float32), params)

    kwargs = {"recombine": recombine.mean(0.5), "sigma": 0.3, **kwargs}
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=Finite(), **kwargs)
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    updates, state = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn))(
        grads, tx.init(params), params
    )
    return seen[-1], optax.apply_updates(params, updates), state


def second_best(fitness):
    return jnp.array([0.0, 1.0])


def normal(shape, dtype):
    return jax.random.normal(jax.random.key(4), shape, jnp.float32).astype(dtype)


LOW = [jnp.bfloat16, jnp.float16, jnp.float8_e5m2, jnp.float8_e4m3fn]


def any_numbers(dtype, count=200_000):
    """Finite numbers of a dtype, of all magnitudes."""
    wide = np.random.default_rng(0).normal(size=count)
    if jnp.finfo(dtype).bits == 32:
        return (wide * np.exp(4 * wide[::-1])).astype(dtype)
    kind = np.uint8 if jnp.finfo(dtype).bits == 8 else np.uint16
    numbers = np.random.default_rng(1).integers(0, np.iinfo(kind).max + 1, count).astype(kind)
    numbers = numbers.view(dtype)
    return np.where(np.isfinite(numbers.astype(np.float32)), numbers, np.zeros_like(numbers))


@pytest.mark.crossed(6)
@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(
    ("dtype", "step"),
    [
        *((low, low) for low in LOW),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float16),
        (jnp.float16, jnp.bfloat16),
    ],
)
def test_what_an_update_reaches_is_reached_exactly(dtype, step, near):
    """The update to it leads to it, wherever the parameters are and wherever it is meant to go."""
    source = any_numbers(dtype)
    wide = source.astype(np.float32)
    with np.errstate(over="ignore"):
        by = 1 + 0.3 * np.random.default_rng(2).normal(size=wide.shape).astype(np.float32)
        target = jnp.asarray(wide * by if near else wide[::-1]).astype(dtype)
    source = jnp.asarray(source)
    reached = arithmetic.reach(source, arithmetic.difference(target, source, jnp.dtype(step)))
    update = arithmetic.difference(reached, source, jnp.dtype(step))
    assert update.dtype == step
    landed = optax.apply_updates(source, update)
    finite = np.isfinite(reached.astype(np.float32))  # an update can overflow
    assert finite.mean() > 0.25
    chex.assert_trees_all_equal(landed[finite], reached[finite])
    # A step of the base is one that is reached as it is.
    base = arithmetic.add(source, arithmetic.difference(target, source, jnp.dtype(step)))
    off = np.abs(reached.astype(np.float32) - base.astype(np.float32))[finite]
    assert (off > 0).mean() < 1e-3


@pytest.mark.crossed(1)
@pytest.mark.parametrize("dtype", [*LOW, jnp.float32])
@pytest.mark.parametrize("rule", ["always", "best"])
def test_updates_have_the_dtypes_of_those_of_the_base(dtype, rule):
    params = {"w": normal((6, 5), dtype), "scale": jnp.ones(4, jnp.float32)}
    base = optax.adam(1e-2)
    tx = evolve(base, evolve_every=2, accept=ACCEPT[rule])
    grads = jax.tree.map(jnp.ones_like, params)
    state, base_state = tx.init(params), base.init(params)

    def value_fn(params):
        return jnp.sum(params["w"].astype(jnp.float32) ** 2) + jnp.sum(params["scale"])

    for _ in range(2):
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        expected, base_state = base.update(grads, base_state, params)
        chex.assert_trees_all_equal_dtypes(updates, expected)
    assert int(state.cycle) == 1


@pytest.mark.crossed(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kwargs", [{}, presets.metric()], ids=["default", "metric"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.conditionally_transform(tx, lambda step: step < 9),
        lambda tx: optax.conditionally_mask(tx, lambda step: step < 9),
    ],
    ids=["apply_if_finite", "conditionally_transform", "conditionally_mask"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_wrappers_that_branch_on_the_updates_work_in_low_precision(dtype, kwargs, wrap, inside):
    options = {**kwargs, "evolve_every": 2}
    base = optax.adam(1e-2)
    tx = evolve(wrap(base), **options) if inside else wrap(evolve(base, **options))
    params = jnp.linspace(0.5, 1.0, 8).astype(dtype)

    def value_fn(params):
        return jnp.sum(params.astype(jnp.float32) ** 2)

    step = jax.jit(lambda p, s: tx.update(jax.grad(value_fn)(p), s, p, value_fn=value_fn))
    state, before = tx.init(params), value_fn(params)
    for _ in range(4):
        updates, state = step(params, state)
        assert updates.dtype == dtype
        params = optax.apply_updates(params, updates)
    assert value_fn(params) < before
    assert int(optax.tree.get(state, "evaluations")) > 0


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize(
    ("dtype", "memory"),
    [(jnp.bfloat16, "host"), (jnp.bfloat16, "replay"), (jnp.float16, "host")],
)
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


@pytest.mark.wide
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


@pytest.mark.crossed(2)
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
