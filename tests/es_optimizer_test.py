"""The direction of a cycle through an optax optimizer; and what is not evaluated without use."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import optax
import pytest
from recorded import fitness_of, record_evaluations, toy_params
from rules import ACCEPT, Finite

from egd_optax import Execution, accept, evolve, noise, presets, recombine
from xla_options import known

GROUND = {
    "evolve_every": 1,
    "population_size": 8,
    "sigma": 0.1,
    "recombine": recombine.centered_rank(),
}


def params_of(dtype=jnp.float32):
    wave = jnp.linspace(-1.0, 2.0, 24)
    return {"w": wave.reshape(4, 6).astype(dtype), "b": wave[:6].astype(dtype)}


def loss(params):
    return sum(jnp.mean((leaf.astype(jnp.float32) - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def weighted(weights, leaves, base):
    return sum(w * (leaf - base) for w, leaf in zip(weights, leaves, strict=True))


def run(tx, params, steps=3, value_fn=loss):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    step = jax.jit(step).lower(params, state).compile(known("hurried"))
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("rule", ACCEPT)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"antithetic": True, "recombine": recombine.mean()},
        {"generations": 2, "execution": Execution(candidate_batch_size=4)},
        {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")},
    ],
    ids=["plain", "elites of pairs", "generations in batches", "factored"],
)
@pytest.mark.crossed(2)
def test_any_sgd_at_rate_one_steps_as_the_default_does(rule, kwargs):
    settings = {**GROUND, "accept": ACCEPT[rule], **kwargs}
    plain, state = run(evolve(optax.sgd(0.1), **settings), params_of())
    params, stepped = run(
        evolve(optax.sgd(0.1), es_optimizer=optax.sgd(1.0), **settings), params_of()
    )
    chex.assert_trees_all_close(params, plain, rtol=1e-5, atol=1e-6)
    assert stepped.info.accepted == state.info.accepted
    assert stepped.info.evaluations == state.info.evaluations


@pytest.mark.parametrize("antithetic", [False, True])
def test_numpy_reproduces_the_direction_and_optax_the_step(antithetic):
    """Adam by itself, on the gradient that the members that were seen recombine to."""
    size, adam, rule = 6, optax.adam(0.05), recombine.centered_rank()
    seen, parent, landed, _ = record_evaluations(
        population_size=size, generations=2, sigma=0.3, antithetic=antithetic, recombine=rule,
        es_optimizer=adam, accept=Finite(),
    )  # fmt: skip
    a_round = size + antithetic + 1
    state, expected = adam.init(parent), parent
    for members in (seen[: a_round - 1], seen[a_round:-1]):
        weights = np.asarray(rule.weights(jnp.array([fitness_of(m) for m in members]), size))
        grads = jax.tree.map(
            lambda base, *leaves, by=weights: -weighted(by, leaves, base), expected, *members
        )
        updates, state = adam.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close(landed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.wide
@pytest.mark.exact
def test_the_same_bits_in_every_memory_mode_and_batch():
    settings = {**GROUND, "recombine": recombine.mean(0.5), "accept": accept.improved()}
    runs = [
        evolve(optax.sgd(0.1), es_optimizer=optax.adam(0.1), execution=execution, **settings)
        for execution in (
            Execution(memory="host"),
            Execution(memory="device"),
            Execution(memory="replay"),
            Execution(candidate_batch_size=4),
        )
    ]

    def outcome(tx):
        params, state = params_of(), tx.init(params_of())
        for _ in range(3):
            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params, value_fn=loss)
            params = optax.apply_updates(params, updates)
        return params, state

    first, *others = map(outcome, runs)
    for other in others:
        chex.assert_trees_all_equal(other, first)


@pytest.mark.wide
def test_what_the_step_keeps_moves_with_the_children_that_are_taken():
    """Of a child that is refused, and of a population that is lost, it knows nothing."""
    tx = evolve(optax.sgd(0.1), es_optimizer=optax.adam(0.1), accept=accept.improved(), **GROUND)
    for value_fn in (lambda p: -1.0 / (1e-9 + loss(p)) * 0, lambda p: jnp.nan + 0 * loss(p)):
        _, state = run(tx, params_of(), value_fn=value_fn)
        chex.assert_trees_all_equal(state.strategy_state, tx.init(params_of()).strategy_state)

    def steps_taken(rule):
        tx = evolve(optax.set_to_zero(), es_optimizer=optax.adam(0.1), accept=rule, **GROUND)
        return int(optax.tree.get(run(tx, params_of())[1].strategy_state, "count"))

    assert steps_taken(accept.always()) == 3
    assert 0 < steps_taken(accept.improved()) <= 3


def test_the_step_sees_the_leaves_that_mutate():
    """A clip by their norm, a decay and a label that a mask gives; no leaf that stands still."""
    params = {**params_of(), "kept": jnp.full(3, 9.0), "index": jnp.arange(3)}
    seen = []

    def update(updates, state, params=None):
        seen.append((updates, params))
        return updates, state

    spy = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    step = optax.chain(spy, optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    mask = {"w": True, "b": True, "kept": False, "index": False}
    tx = evolve(
        optax.set_to_zero(), es_optimizer=step, mutable=mask, accept=accept.always(), **GROUND
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(
        zeros, tx.init(params), params, value_fn=lambda p: loss({"w": p["w"], "b": p["b"]})
    )
    np.testing.assert_allclose(optax.tree.norm(updates), 1e-3, rtol=1e-3)
    assert seen
    for tree in (tree for pair in seen for tree in pair):
        assert jax.tree.structure(tree) == jax.tree.structure(
            {"w": 0, "b": 0, "kept": optax.MaskedNode(), "index": optax.MaskedNode()}
        )


def test_a_leaf_that_the_base_freezes_stays_and_has_no_gradient():
    base = optax.partition(
        {"moves": optax.sgd(0.1), "stays": optax.set_to_zero()}, {"w": "moves", "b": "stays"}
    )
    tx = evolve(base, es_optimizer=optax.adam(0.1), accept=accept.always(), **GROUND)
    params, state = run(tx, params_of())
    chex.assert_trees_all_equal(params["b"], params_of()["b"])
    assert (params["w"] != params_of()["w"]).all()
    moments = optax.tree.get(state.strategy_state, "mu")
    chex.assert_trees_all_equal(moments["b"], jnp.zeros(6))
    assert (moments["w"] != 0).all()


def test_in_bfloat16_the_step_keeps_float32_and_the_state_its_types():
    tx = evolve(optax.sgd(0.1), es_optimizer=optax.adam(0.1), accept=accept.best(), **GROUND)
    params = params_of(jnp.bfloat16)
    state = tx.init(params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), loss(params)

    (landed, after), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=4))((params, state))
    chex.assert_trees_all_equal_shapes_and_dtypes((landed, after), (params, state))
    assert optax.tree.get(after.strategy_state, "mu")["w"].dtype == jnp.float32
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_devices_that_share_the_members_step_as_one_does(axis_type):
    settings = {**GROUND, "population_size": 16, "antithetic": True, "accept": accept.always()}
    alone, state = run(
        evolve(optax.sgd(0.1), es_optimizer=optax.adam(0.1), **settings), params_of()
    )
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(axis_type,))
    execution = Execution(population_axis="pop", mesh=mesh)
    tx = evolve(optax.sgd(0.1), es_optimizer=optax.adam(0.1), execution=execution, **settings)
    placed = jax.device_put(params_of(), NamedSharding(mesh, PartitionSpec()))
    divided, divided_state = run(tx, placed)
    chex.assert_trees_all_close(divided, alone, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        divided_state.strategy_state, state.strategy_state, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"execution": Execution(candidate_batch_size=4)},
        {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")},
        {"generations": 3, "recombine": recombine.mean()},
    ],
    ids=["one by one", "batches", "factored", "generations"],
)
@pytest.mark.crossed(2)
def test_a_child_that_is_taken_unseen_costs_no_evaluation(antithetic, kwargs):
    seen, parent, landed, info = record_evaluations(
        antithetic=antithetic, accept=accept.always(),
        **{"population_size": 8, "recombine": recombine.centered_rank(), **kwargs},
    )  # fmt: skip
    assert len(seen) == int(info.evaluations) == 8 * kwargs.get("generations", 1)
    assert bool(info.accepted)
    assert np.isinf(info.child_fitness)
    assert np.isinf(info.parent_fitness) == antithetic
    best = min(map(fitness_of, seen[-8:]))
    np.testing.assert_allclose(info.best_fitness, best, rtol=1e-5)
    np.testing.assert_allclose(
        info.mean_fitness, np.mean(list(map(fitness_of, seen[-8:]))), rtol=1e-5
    )
    if not kwargs.get("generations"):
        others = seen if antithetic else seen[1:]
        ranks = np.argsort(np.argsort(list(map(fitness_of, seen))))
        weights = (7 - 2 * ranks) / 16
        expected = jax.tree.map(
            lambda base, *leaves: base + weighted(weights[-len(leaves) :], leaves, base),
            parent,
            *others,
        )
        chex.assert_trees_all_close(landed, expected, rtol=1e-4, atol=1e-5)


def test_the_presets_that_compare_nothing_pay_for_the_population_alone():
    tx = evolve(optax.adam(1e-3), **presets.metric(population_size=8, evolve_every=1))
    _, state = run(tx, params_of(), steps=1)
    assert int(state.info.evaluations) == 8


def test_the_default_keeps_nothing():
    tx = evolve(optax.sgd(0.1), **GROUND)
    assert not jax.tree.leaves(tx.init(toy_params()).strategy_state)


def test_an_injected_learning_rate_scales_the_way():
    """It is read from the state, so that it can be changed there during a run."""
    half = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    settings = {**GROUND, "accept": accept.always()}
    tx = evolve(optax.set_to_zero(), es_optimizer=half, **settings)
    params, state = params_of(), tx.init(params_of())

    def moved(tx, state):
        updates, _ = tx.update(params, state, params, value_fn=loss)
        return updates

    whole = moved(evolve(optax.set_to_zero(), **settings), evolve(optax.set_to_zero()).init(params))
    for rate in (0.5, 0.25):
        kept = state.strategy_state.es_optimizer
        kept = kept._replace(hyperparams={"learning_rate": jnp.float32(rate)})
        changed = state._replace(strategy_state=state.strategy_state._replace(es_optimizer=kept))
        expected = jax.tree.map(lambda leaf, by=rate: by * leaf, whole)
        chex.assert_trees_all_close(moved(tx, changed), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [jax.jit, lambda step: step], ids=["jit", "eager"])
@pytest.mark.parametrize(
    ("made_with", "used_with"),
    [({"es_optimizer": optax.adam(0.1)}, {}), ({}, {"es_optimizer": optax.adam(0.1)})],
    ids=["dropped", "missing"],
)
def test_the_state_of_another_optimizer_is_refused(made_with, used_with, jit):
    params = params_of()
    state = evolve(optax.sgd(0.1), **made_with, **GROUND).init(params)
    tx = evolve(optax.sgd(0.1), **used_with, **GROUND)
    refused = r"`state.strategy_state.es_optimizer` must be that of this optimizer, got .*: call"
    with pytest.raises(ValueError, match=refused):
        jit(lambda state: tx.update(params, state, params, value_fn=loss))(state)


def test_a_strategy_state_that_is_none_is_named():
    params = params_of()
    tx = evolve(optax.sgd(0.1), **GROUND)
    state = tx.init(params)._replace(strategy_state={})
    with pytest.raises(TypeError, match="`state.strategy_state` must be a StrategyState, got dict"):
        tx.update(params, state, params, value_fn=loss)


OF_LAYERS = noise.low_rank(batch_axis=lambda leaf: (0,) if len(leaf.shape) == 3 else ())


def moved_by_many(params, kind, population_size, **through):
    """The updates of a strategy that all members have a weight in."""

    def loss(params):  # exact in any order: all devices rank the members alike
        return sum(jnp.max(params[name].astype(jnp.float32)) for name in "ab")

    tx = evolve(
        optax.set_to_zero(),
        evolve_every=1,
        population_size=population_size,
        antithetic=True,
        sigma=0.05,
        noise=kind,
        recombine=recombine.centered_rank(),
        accept=accept.always(),
        **through,
        execution=Execution(candidate_batch_size=50 if population_size > 50 else None),
    )
    return jax.jit(lambda s, p: tx.update(None, s, p, value_fn=loss)[0])(tx.init(params), params)


def stacks(width):
    draw = np.random.default_rng(3).normal
    return {name: jnp.asarray(draw(size=(8, width, width)), jnp.bfloat16) for name in "ab"}


@pytest.mark.parametrize("population_size", [8, 150])
@pytest.mark.parametrize(
    ("kind", "width"), [(noise.gaussian(), 80), (noise.low_rank(), 80), (OF_LAYERS, 384)]
)
def test_large_sums_made_in_turn_are_those_that_an_optimizer_gets(kind, width, population_size):
    """Without an optimizer each sum becomes an update in bfloat16 before the next one is made.

    That of many draws of a stack of layers is made some layers at a time.
    """
    params = {**stacks(width), "c": jnp.ones(7, jnp.bfloat16)}
    found = moved_by_many(params, kind, population_size)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
    others = moved_by_many(params, kind, population_size, es_optimizer=optax.sgd(1.0))
    jax.tree.map(np.testing.assert_array_equal, found, others)


@pytest.mark.on_cpu
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")], ids=str)
def test_they_are_the_same_on_a_mesh(spec, axis_type):
    """Even if the layers of a stack are on different devices."""
    mesh = Layout({"fsdp": 8}, axis_type).mesh
    divided = jax.device_put(stacks(384), NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        found = moved_by_many(divided, OF_LAYERS, 150)
    whole = moved_by_many(stacks(384), OF_LAYERS, 150)
    for ours, other in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        assert ours.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
        # Float32 sums whose order XLA chooses, rounded to eight digits.
        np.testing.assert_allclose(np.float32(ours), np.float32(other), rtol=2**-7, atol=1e-5)
