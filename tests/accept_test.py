"""A rule of acceptance written outside of the library keeps every promise, and is checked."""

import dataclasses

import chex
from flax import serialization
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
from rules import ACCEPT

from egd_optax import Execution, accept, evolve, noise, recombine
from xla_options import known


@dataclasses.dataclass(frozen=True)
class Annealed(accept.Accept):
    """Takes what is worse at a temperature that cools down with every generation."""

    temperature: float = 3.0

    def init(self, params):
        return {"temperature": jnp.float32(self.temperature), "keys": jnp.zeros(2, jnp.uint32)}

    def choose(self, key, parent, best, child, state):
        # Rounded, because a fitness in batches, or of many devices, has other last digits.
        losses = jnp.round(jnp.stack([parent, best, child]), 2)
        chances = jax.nn.softmax(-losses / state["temperature"])
        choice = jax.random.choice(key, 3, p=chances)
        data = jax.random.key_data(key)
        return choice, {"temperature": 0.7 * state["temperature"], "keys": data}


class Returns(accept.Accept):
    """A rule that returns what it was made of, whatever it is given."""

    def __init__(self, *returned, state=(), **attributes):
        self.returned, self.state = returned, state
        vars(self).update(attributes)

    def init(self, params):
        return self.state

    def choose(self, key, parent, best, child, state):
        return self.returned if len(self.returned) > 1 else (*self.returned, state)


GROUND = {"evolve_every": 2, "population_size": 8, "sigma": 0.2, "generations": 2}


def params_of(dtype=jnp.float32):
    wave = jnp.linspace(-1.0, 2.0, 24)
    return {"w": wave.reshape(4, 6).astype(dtype), "b": wave[:6].astype(dtype)}


def loss(params):
    return sum(jnp.sum((leaf.astype(jnp.float32) - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def step_of(tx, value_fn=loss):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, steps=8, params=None, state=None, wrap=jax.jit, value_fn=loss):
    params = params_of() if params is None else params
    state = tx.init(params) if state is None else state
    step = wrap(step_of(tx, value_fn))
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def optimizer(rule=Annealed(), **settings):
    return evolve(optax.sgd(0.01), accept=rule, **{**GROUND, **settings})


def one_cycle(rule, value_fn=loss, **settings):
    """The parameters and the info after one step with a cycle around them."""
    tx = evolve(optax.set_to_zero(), evolve_every=1, sigma=0.2, accept=rule, **settings)
    params = params_of()
    updates, state = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=value_fn))(
        params, tx.init(params)
    )
    return optax.apply_updates(params, updates), state


# The key and the state.


def test_each_generation_has_a_key_of_its_own_that_no_member_has():
    keys = []

    class Listening(accept.Accept):
        def choose(self, key, parent, best, child, state):
            jax.debug.callback(
                lambda data: keys.append(tuple(map(int, data))), jax.random.key_data(key)
            )
            return accept.CHILD, state

    drawn = []

    class Drawing(noise.Noise):
        def draw(self, key, leaf):
            jax.debug.callback(
                lambda data: drawn.append(tuple(map(int, data))), jax.random.key_data(key)
            )
            return (jax.random.normal(key, leaf.shape),)

    run(optimizer(Listening(), noise=Drawing()), steps=6)
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == 3 * GROUND["generations"]
    assert drawn
    assert not set(keys) & set(drawn)


def test_a_rule_that_draws_leaves_the_members_as_they_are():
    found = [one_cycle(rule)[1].info for rule in (accept.improved(), Annealed())]
    assert found[0].mean_fitness == found[1].mean_fitness
    assert found[0].child_fitness == found[1].child_fitness


def test_the_state_advances_with_every_generation_whichever_candidate_was_taken():
    for choice in (accept.PARENT, accept.BEST, accept.CHILD):

        class Counting(accept.Accept):
            def init(self, params):
                return 0

            def choose(self, key, parent, best, child, state, choice=choice):
                return choice, state + 1

        _, state = run(optimizer(Counting()), steps=7)
        counted = state.strategy_state.accept
        assert counted.dtype == jnp.int32
        assert int(counted) == 3 * GROUND["generations"]


def test_a_step_without_a_cycle_passes_the_state_on():
    tx = optimizer()
    params, state = run(tx, steps=2)
    for evolve_it in (None, False):
        _, after = jax.jit(lambda p, s, e=evolve_it: tx.update(p, s, p, value_fn=loss, evolve=e))(
            params, state
        )
        chex.assert_trees_all_equal(after.strategy_state, state.strategy_state)


def test_the_state_has_its_types_from_the_first_step_on():
    tx = optimizer()
    start = params_of(jnp.bfloat16), tx.init(params_of(jnp.bfloat16))
    after = run(tx, params=start[0])
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, start)
    with jax.enable_x64(True):
        start = params_of(jnp.float64), tx.init(params_of(jnp.float64))
        after = run(tx, params=start[0])
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, start)


def test_a_derivative_passes_through_a_step_whose_rule_keeps_a_state():
    tx = optimizer()
    params, state = params_of(), tx.init(params_of())

    def after(rate):
        grads = jax.tree.map(lambda leaf: rate * leaf, params)
        updates, _ = tx.update(grads, state, params, value_fn=loss)
        return loss(optax.apply_updates(params, updates))

    expected = jax.grad(lambda rate: loss(jax.tree.map(lambda p: p - 0.01 * rate * p, params)))(1.0)
    np.testing.assert_allclose(jax.grad(after)(1.0), expected, rtol=1e-5)


# The same run, wherever and however it runs.


@pytest.mark.exact
@pytest.mark.crossed(1)
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_same_bits_in_every_memory_mode_as_a_scan_and_after_a_resume(antithetic):
    def made(**execution):
        return optimizer(antithetic=antithetic, execution=Execution(**execution))

    tx = made()
    first = run(tx)
    assert float(first[1].strategy_state.accept["temperature"]) < 1.0
    for memory in ("device", "replay"):
        chex.assert_trees_all_equal(run(made(memory=memory)), first)

    middle = run(tx, steps=3)
    stored = serialization.to_bytes(middle)
    restored = serialization.from_bytes((params_of(), tx.init(params_of())), stored)
    resumed = run(made(), steps=5, params=restored[0], state=restored[1])
    chex.assert_trees_all_equal(resumed, first)


@pytest.mark.crossed(3)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("way", ["batches", "scan", "eager", "vmap"])
def test_the_same_choices_in_batches_in_a_scan_and_outside_of_jit(way, antithetic):
    tx = optimizer(antithetic=antithetic)
    params, state = run(tx)
    if way == "batches":
        batches = Execution(candidate_batch_size=4)
        other, found = run(optimizer(antithetic=antithetic, execution=batches))
    elif way == "scan":
        start = params_of(), tx.init(params_of())
        step = step_of(tx)
        (other, found), _ = jax.jit(
            lambda carry: jax.lax.scan(lambda c, _: (step(*c), None), carry, length=8)
        )(start)
    elif way == "eager":
        other, found = run(tx, wrap=lambda step: step)
    else:
        start = jax.tree.map(lambda leaf: leaf[None], (params_of(), tx.init(params_of())))
        models, states = run(
            tx, params=start[0], state=start[1], wrap=lambda s: jax.jit(jax.vmap(s))
        )
        other, found = jax.tree.map(lambda leaf: leaf[0], (models, states))
    chex.assert_trees_all_equal(
        found.strategy_state.accept["keys"], state.strategy_state.accept["keys"]
    )
    chex.assert_trees_all_close(other, params, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(found.info, state.info, rtol=1e-4, atol=1e-5)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("antithetic", [False, True])
def test_eight_devices_choose_as_one_does(antithetic, axis_type):
    settings = {"population_size": 16, "antithetic": antithetic}
    params, state = run(optimizer(**settings))
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(axis_type,))
    tx = optimizer(execution=Execution(population_axis="pop", mesh=mesh), **settings)
    start = jax.device_put(
        (params_of(), tx.init(params_of())), NamedSharding(mesh, PartitionSpec())
    )
    step = jax.jit(step_of(tx)).lower(*start).compile(known("hurried"))
    divided, found = run(tx, params=start[0], state=start[1], wrap=lambda _: step)
    chex.assert_trees_all_close(divided, params, rtol=1e-5, atol=2e-5)
    chex.assert_trees_all_equal(found.info.accepted, state.info.accepted)
    chex.assert_trees_all_equal(
        found.strategy_state.accept["keys"], state.strategy_state.accept["keys"]
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_manual_devices_choose_as_one_does(axis_type):
    params, state = run(optimizer(population_size=16))
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(axis_type,))
    tx = optimizer(population_size=16, execution=Execution(population_axis="pop"))
    spec = PartitionSpec()

    def wrap(step):
        return jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
        )

    divided, found = run(tx, wrap=wrap)
    chex.assert_trees_all_close(divided, params, rtol=1e-5, atol=2e-5)
    chex.assert_trees_all_equal(
        found.strategy_state.accept["keys"], state.strategy_state.accept["keys"]
    )


# What a rule cannot do.


@pytest.mark.crossed(5)
@pytest.mark.parametrize("choice", [accept.PARENT, accept.BEST, accept.CHILD, 7, -1])
@pytest.mark.parametrize("compares", [False, True])
def test_what_a_rule_chooses_is_where_a_generation_ends(choice, compares):
    kind = Returns(choice, compares=compares)
    landed, state = one_cycle(kind, antithetic=True, recombine=recombine.centered_rank())
    info = state.info
    start, ends = params_of(), loss(landed)
    assert bool(info.accepted) == (choice in (accept.BEST, accept.CHILD))
    if choice == accept.BEST:
        np.testing.assert_allclose(ends, info.best_fitness, rtol=1e-5)
    elif choice == accept.CHILD:
        rule = ACCEPT["finite" if compares else "always"]
        expected, _ = one_cycle(rule, antithetic=True, recombine=recombine.centered_rank())
        chex.assert_trees_all_close(landed, expected, rtol=1e-5, atol=1e-6)
    else:
        chex.assert_trees_all_equal(landed, start)
    assert int(info.evaluations) == (8 + 2 * compares)
    assert np.isfinite(info.child_fitness) == compares
    assert np.isfinite(info.parent_fitness) == compares


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("choice", [accept.BEST, accept.CHILD])
def test_no_rule_takes_what_is_not_finite(choice, bad):
    start, (landed, state) = params_of(), one_cycle(Returns(choice), lambda p: bad + 0 * loss(p))
    chex.assert_trees_all_equal(landed, start)
    assert not bool(state.info.accepted)


@pytest.mark.parametrize("choice", [accept.BEST, accept.CHILD])
def test_no_rule_takes_what_accept_value_fn_cannot_judge(choice):
    tx = evolve(optax.set_to_zero(), evolve_every=1, accept=Returns(choice))
    params = params_of()
    updates, state = tx.update(
        params, tx.init(params), params, value_fn=loss, accept_value_fn=lambda p: jnp.nan * loss(p)
    )
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert not bool(state.info.accepted)


@pytest.mark.parametrize(
    "settings", [{"sigma": 0.0}, {"value_fn": lambda p: jnp.float32(1.0) + 0 * loss(p)}]
)
@pytest.mark.parametrize("choice", [accept.BEST, accept.CHILD])
def test_where_nothing_moved_the_parent_is_taken(choice, settings):
    settings = {"value_fn": loss, "sigma": 0.2, **settings}
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, accept=Returns(choice), sigma=settings["sigma"]
    )
    params = params_of()
    updates, state = tx.update(params, tx.init(params), params, value_fn=settings["value_fn"])
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert not bool(state.info.accepted)


def test_the_best_is_not_taken_by_a_rule_that_says_that_it_never_does():
    _, state = one_cycle(Returns(accept.BEST, takes_best=False))
    assert not bool(state.info.accepted)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (Returns(jnp.bool_(True)), TypeError, r"`accept.choose` must return `accept.PARENT`.* an integer, got bool \[\] from .*Returns.*: write `jnp.where\("),
        (Returns(1.0), TypeError, r"an integer, got float32 \[\]"),
        (Returns(jnp.zeros(3, jnp.int32)), ValueError, r"an integer of shape \[\], got int32 \[3\]"),
        (Returns(1, 2, 3), TypeError, r"`accept.choose` must return a choice and a state, got \(1, 2, 3\) from"),
        (Returns(2, {"a": jnp.ones(2)}), ValueError, r"`accept.choose` must return a state like that of `accept.init`, got PyTreeDef"),
        (Returns(2, jnp.ones(3), state=jnp.ones(2)), ValueError, r"got float32 \[3\] for float32 \[2\] from .*: keep shapes and dtypes"),
        (Returns(2, 0.5, state=1), ValueError, r"got float32 \[\] for int32 \[\]"),
        (accept.Accept(), NotImplementedError, "Accept must have a method `choose`"),
    ],
    ids=["bool", "float", "shape", "no pair", "structure", "shape of state", "dtype of state", "none"],
)  # fmt: skip
def test_what_a_rule_returns_is_checked(rule, error, message):
    with pytest.raises(error, match=message):
        one_cycle(rule)


@pytest.mark.parametrize("jit", [jax.jit, lambda step: step], ids=["jit", "eager"])
@pytest.mark.parametrize("rules", [(Annealed(), accept.best()), (accept.best(), Annealed())])
def test_the_state_of_another_rule_is_refused(rules, jit):
    made_with, used_with = (evolve(optax.sgd(0.1), accept=rule, evolve_every=1) for rule in rules)
    params = params_of()
    state = made_with.init(params)
    with pytest.raises(ValueError, match=r"`state.strategy_state.accept` must be that of this"):
        jit(lambda state: used_with.update(params, state, params, value_fn=loss))(state)


def test_rules_that_keep_nothing_have_no_leaves_in_the_state():
    for rule in ACCEPT.values():
        assert not jax.tree.leaves(evolve(optax.sgd(0.1), accept=rule).init(1.0).strategy_state)
