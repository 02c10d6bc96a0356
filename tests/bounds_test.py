"""Bounds on parameters: what is evaluated, and what is deployed, lies within them."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import optax
import pytest
from recorded import GROUND, record_steps

from egd_optax import Execution, accept, ask_tell, evolve, noise, recombine

LOW, HIGH = -0.4, 0.9
PARAMS = {"w": jnp.linspace(-0.4, 0.9, 24).reshape(4, 6), "b": jnp.linspace(-0.3, 0.8, 6)}
STILL = optax.set_to_zero()
SETTINGS = {
    "plain": {},
    "pairs": {"antithetic": True},
    "always": {"antithetic": True, "accept": accept.always()},
    "all members": {"recombine": recombine.centered_rank()},
    "generations": {"generations": 3},
    "low rank": {"noise": noise.low_rank(relative=False), "antithetic": True},
    "an optimizer": {"es_optimizer": optax.adam(1.0), "accept": accept.always()},
}
EXECUTIONS = {
    "on the host": Execution(),
    "on the device": Execution(memory="device"),
    "drawn again": Execution(memory="replay"),
    "in batches": Execution(candidate_batch_size=4),
}


def loss(params):
    return sum(jnp.mean((leaf.astype(jnp.float32) - 1.0) ** 2) for leaf in jax.tree.leaves(params))


def run(params=PARAMS, steps=1, base=STILL, value_fn=loss, **kwargs):
    """The last parameters, the state, and everything that was evaluated."""
    settings = {"bounds": (LOW, HIGH), **kwargs}
    return record_steps(base, params, loss, value_fn, steps=steps, **settings)


def assert_within(tree, low=LOW, high=HIGH):
    for leaf in jax.tree.leaves(tree):
        bounds = np.asarray(low, leaf.dtype), np.asarray(high, leaf.dtype)
        assert np.all((leaf >= bounds[0]) & (leaf <= bounds[1]))


def reflected(leaf):
    low, high = np.float32(LOW), np.float32(HIGH)
    leaf = np.where(leaf < low, low + (low - leaf), leaf)
    leaf = np.where(leaf > high, high - (leaf - high), leaf)
    return np.clip(leaf, low, high)


@pytest.mark.parametrize("name", SETTINGS)
def test_all_that_is_evaluated_and_deployed_is_within_the_bounds(name):
    params, _, seen = run(steps=3, **SETTINGS[name])
    assert len(seen) > 20
    assert_within([params, seen])


def test_without_bounds_members_are_beyond_them():
    _, _, seen = run(bounds=None)
    assert any(np.any(leaf > HIGH) for leaf in jax.tree.leaves(seen))


@pytest.mark.parametrize("pairs", [False, True])
def test_members_are_those_without_bounds_reflected_and_their_sum_is_that_of_numpy(pairs):
    weights = jnp.array([0.0, *np.linspace(0.6, -0.5, 8 - (not pairs))], jnp.float32)
    settings = {
        "recombine": recombine.member_weights(
            lambda fitness: weights[jnp.argsort(jnp.argsort(fitness))]
        ),
        "accept": accept.improved(),
        "antithetic": pairs,
    }
    _, _, free = run(bounds=None, **settings)
    _, state, bound = run(**settings)
    members = len(bound) - 1  # the last one is the child
    for at in range(members):
        chex.assert_trees_all_close(bound[at], jax.tree.map(reflected, free[at]), atol=2e-7)
    fitness = np.array([float(loss(tree)) for tree in bound[:members]])
    own = np.asarray(weights)[np.argsort(np.argsort(fitness))]
    for key, parent in PARAMS.items():
        moved = sum(w * (bound[at][key] - np.asarray(parent)) for at, w in enumerate(own) if at)
        child = np.clip(np.asarray(parent) + moved, np.float32(LOW), np.float32(HIGH))
        np.testing.assert_allclose(bound[members][key], child, atol=1e-6)
    assert state.info.child_fitness == loss(bound[members])


@pytest.mark.exact
@pytest.mark.parametrize("name", ["plain", "pairs", "generations"])
def test_every_way_to_run_it_finds_the_same_bits(name):
    first, *others = (
        run(steps=2, **SETTINGS[name], execution=execution)[0] for execution in EXECUTIONS.values()
    )
    for other in others:
        chex.assert_trees_all_equal(other, first)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("divided", [False, True])
def test_devices_find_the_same(axis_type, divided):
    """Members divided over an axis, or parameters, small and large, whose leaves are divided."""
    params = {"w": jnp.linspace(-0.4, 0.9, 2**16).reshape(-1, 128), "b": PARAMS["b"]}
    expected, _, _ = run(params, population_size=16)
    mesh = Layout({"pop": 4}, axis_type).mesh
    spec = {"w": PartitionSpec("pop" if divided else None), "b": PartitionSpec()}
    placed = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, spec)
    execution = Execution() if divided else Execution(population_axis="pop", mesh=mesh)
    tx = evolve(
        optax.set_to_zero(), **{**GROUND, "population_size": 16}, bounds=(LOW, HIGH),
        execution=execution,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(lambda state, params: tx.update(None, state, params, value_fn=loss))(
            tx.init(placed), placed
        )
        found = jax.device_get(optax.apply_updates(placed, updates))
    chex.assert_trees_all_close(found, expected, atol=2e-5)
    assert_within(found)


@pytest.mark.parametrize(
    ("dtype", "of_updates"),
    [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"),
     ("bfloat16", "float32"), ("float16", "float16")],
)  # fmt: skip
def test_rounding_leads_to_no_point_outside(dtype, of_updates):
    """The bounds are no numbers of few digits, and the base jumps from afar into them."""
    low, high = np.float32(-0.1), np.float32(0.3)
    inside = jnp.linspace(-0.09, 0.29, 257)
    params = (jnp.array([[0.0], [3.0], [-1000.0]]) + inside).astype(dtype)

    def jump(updates, state, params):
        return (inside - params.astype(jnp.float32)).astype(of_updates), state

    base = optax.GradientTransformation(lambda params: (), jump)
    found, _, seen = run(
        params, base=base, bounds=(low, high), population_size=16, accept=accept.always()
    )
    for point in [found, *seen[1:]]:  # the first one is the parent
        assert np.all((point.astype(np.float32) >= low) & (point.astype(np.float32) <= high))


def test_bounds_that_are_infinite_change_nothing():
    chex.assert_trees_all_equal(run(bounds=(-jnp.inf, jnp.inf))[0], run(bounds=None)[0])


def test_each_leaf_and_each_entry_has_bounds_of_its_own():
    low = {"w": np.full(6, -0.4), "b": -np.inf}
    high = {"w": np.array([0.9, 1.0, 0.91, np.inf, 0.95, 1.2]), "b": np.inf}
    _, _, seen = run(bounds=(low, high), sigma=1.0)
    w = np.stack([tree["w"] for tree in seen[1:8]])
    assert np.all(w >= np.float32(-0.4))
    assert np.all(w <= high["w"].astype(np.float32))
    assert np.any(w[..., 3] > 1.2)
    assert any(np.any(tree["b"] < -0.4) for tree in seen)
    _, _, prefix = run(bounds=(-0.4, high), sigma=1.0)
    np.testing.assert_array_equal(np.stack([tree["w"] for tree in prefix[1:8]]), w)


def test_a_parent_beyond_the_bounds_stays_and_its_members_come_in():
    params = {"w": jnp.full((4, 6), 5.0), "b": PARAMS["b"]}
    worse = lambda params: -jnp.mean(params["w"])  # noqa: E731
    found, state, seen = run(params, value_fn=worse, accept=accept.improved())
    assert not state.info.accepted.any()
    chex.assert_trees_all_equal(found, params)
    assert_within(seen[1:])


def test_ask_and_tell_give_the_same_bits():
    tx = evolve(optax.set_to_zero(), **GROUND, bounds=(LOW, {"w": HIGH, "b": np.full(6, HIGH)}))
    asked, state = ask_tell.ask(tx, None, tx.init(PARAMS), PARAMS)
    other = evolve(optax.set_to_zero(), **GROUND, bounds=(LOW, HIGH + 1))
    with pytest.raises(ValueError, match="`asked` must be of this optimizer"):
        ask_tell.tell(other, asked, np.zeros(8), state, PARAMS)
    while isinstance(asked, ask_tell.Asked):
        members = [
            ask_tell.member(asked.ticket, asked.parent, at) for at in range(asked.ticket.size)
        ]
        assert_within(members)
        asked, state = ask_tell.tell(tx, asked, [float(loss(m)) for m in members], state, PARAMS)
    expected = jax.jit(lambda state: tx.update(None, state, PARAMS, value_fn=loss))(tx.init(PARAMS))
    chex.assert_trees_all_equal(asked, expected[0])


def test_outside_of_jit_and_in_a_scan():
    tx = evolve(optax.set_to_zero(), **GROUND, bounds=(LOW, HIGH))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    start = PARAMS, tx.init(PARAMS)
    (scanned, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 2))(start)
    (eager, _), _ = step(step(start, None)[0], None)
    chex.assert_trees_all_close(scanned, eager, atol=1e-6)
    assert_within([scanned, eager])


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (1.0, TypeError, r"`bounds` must be a pair .* got 1.0"),
        ((0.0, 1.0, 2.0), TypeError, r"`bounds` must be a pair"),
        (("a", 1.0), TypeError, r"`bounds` must hold real numbers or arrays, got 'a'"),
        ((np.nan, 1.0), ValueError, r"`bounds` must hold no NaN"),
    ],
)
def test_bad_bounds_are_refused_when_the_optimizer_is_made(bounds, error, message):
    with pytest.raises(error, match=message):
        evolve(optax.sgd(0.1), bounds=bounds)


@pytest.mark.parametrize(
    ("bounds", "params", "error", "message"),
    [
        ((1.0, 0.0), PARAMS, ValueError, r"each lower bound below the upper one, got 1.0 and 0.0"),
        ((0.0, {"w": 1.0}), PARAMS, ValueError, r"two prefixes of the parameters' tree"),
        ((0.0, np.ones(5)), PARAMS, ValueError, r"must broadcast to their leaf, got shape \(5,\)"),
        ((0.0, 1.0), {"w": jnp.ones(3, jnp.complex64)}, TypeError, r"those of real numbers"),
    ],
)
def test_bounds_that_do_not_fit_are_refused_by_name(bounds, params, error, message):
    tx = evolve(optax.set_to_zero(), **GROUND, bounds=bounds)
    with pytest.raises(error, match=message):
        tx.update(params, tx.init(params), params, value_fn=lambda params: jnp.float32(0))


def test_integers_have_the_bounds_of_their_noise():
    params = {"w": jnp.zeros(3, jnp.int8)}
    kind = noise.lattice(-1, 1)
    tx = evolve(optax.set_to_zero(), evolve_every=1, noise=kind, mutable=True, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"infinite for integers.*noise=noise.lattice\(low, high"):
        tx.update(None, tx.init(params), params, value_fn=lambda params: jnp.float32(0))
