"""Nothing is lost: a cycle never makes things worse and no NaN gets through it."""

import itertools

import chex
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rules import ACCEPT

from egd_optax import Execution, accept, egd, evolve, recombine

MEMORY = ("host", "device", "replay")
shapes = st.sampled_from([[()], [(40,)], [(7,), (3, 4)]])  # a program each


def bumpy(params):
    return sum(
        jnp.sum((leaf - 0.5) ** 2 + jnp.sin(9 * leaf) ** 2) for leaf in jax.tree.leaves(params)
    )


# sigma, the key and the parameters are arguments of one program for all examples.
def one_cycle(rule, memory):
    @jax.jit
    def run(params, sigma, key):
        tx = evolve(
            optax.sgd(0.1),
            evolve_every=1,
            sigma=sigma,
            key=key,
            accept=ACCEPT[rule],
            execution=Execution(memory=memory),
        )
        grads = jax.grad(bumpy)(params)
        updates, state = tx.update(grads, tx.init(params), params, value_fn=bumpy)
        return optax.apply_updates(params, updates), state.info

    return run


RUNS = {(a, m): one_cycle(a, m) for a in ("improved", "best") for m in MEMORY}


@pytest.mark.wide
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("rule", ["improved", "best"])
@given(shapes=shapes, log_sigma=st.floats(-4, 1), seed=st.integers(0, 2**31 - 1))
def test_the_step_is_never_worse_than_the_parent(rule, memory, shapes, log_sigma, seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    landed, info = RUNS[rule, memory](params, jnp.float32(10**log_sigma), jnp.int32(seed))
    # The update is a float32 difference: it lands within rounding of what was scored.
    slack = 1e-5 * (1 + jnp.abs(info.parent_fitness))
    assert bumpy(landed) <= info.parent_fitness + slack
    outcomes = [info.parent_fitness, info.child_fitness]
    if rule == "best":
        outcomes.append(info.best_fitness)
    np.testing.assert_allclose(bumpy(landed), min(outcomes), rtol=1e-4, atol=1e-5)
    assert bool(info.accepted) == bool(min(outcomes) < info.parent_fitness)


def poisoned(bad, is_bad):
    """Fitness that is `bad` for the members that `is_bad` picks by their first entry."""
    return lambda params: jnp.where(is_bad(params[0]), bad, jnp.sum((params - 3.0) ** 2))


BAD = [jnp.nan, jnp.inf, -jnp.inf]


@pytest.mark.crossed(2)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "rule",
    [
        recombine.mean(1.0),
        recombine.softmax(elite_fraction=1.0),
        recombine.elite_weights(lambda fitness: jax.nn.softmax(-fitness), 1.0),
    ],
    ids=["mean", "softmax", "elite_weights"],
)
def test_bad_members_never_touch_the_result(bad, rule, memory):
    params = jnp.linspace(0.0, 1.0, 6)
    scored = poisoned(bad, lambda x: x > 0)  # the parent is 0 there

    def run(value_fn, name):
        tx = evolve(
            optax.sgd(0.0),
            evolve_every=1,
            accept=ACCEPT[name],
            recombine=rule,
            execution=Execution(memory=memory),
        )
        updates, state = jax.jit(lambda s, p: tx.update(jnp.zeros(6), s, p, value_fn=value_fn))(
            tx.init(params), params
        )
        return optax.apply_updates(params, updates), state.info

    for name in ("finite", "best"):
        landed, info = run(scored, name)
        assert jnp.isfinite(landed).all()
        # Of the elites, only those with a negative first entry had a finite fitness.
        assert landed[0] <= 0
        assert jnp.isfinite(jnp.stack(info[1:5])).all()


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize(
    ("bad", "rule", "memory"),
    [
        *itertools.product(BAD, ["always", "finite", "improved", "best"], ["replay"]),
        *itertools.product([jnp.nan], ["best"], ["host", "device"]),
    ],
)
def test_the_base_step_stands_if_no_member_is_finite(bad, rule, memory):
    params, grads = jnp.linspace(-1.0, 1.0, 9), jnp.linspace(0.3, 0.7, 9)
    base = optax.sgd(0.1, momentum=0.9)
    execution = Execution(memory=memory)
    tx = evolve(base, evolve_every=1, accept=ACCEPT[rule], execution=execution, reset_base=True)
    updates, state = tx.update(grads, tx.init(params), params, value_fn=lambda p: bad + 0 * p[0])
    expected, expected_state = base.update(grads, base.init(params), params)
    chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(state.base_state, expected_state)
    assert not bool(state.info.accepted)
    assert jnp.isinf(jnp.stack(state.info[1:5])).all()


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "rule",
    [recombine.elite_weights(jnp.sqrt, elite_fraction=1.0), recombine.member_weights(jnp.sqrt)],
    ids=["elite_weights", "member_weights"],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_nan_weights_do_not_touch_the_result(rule, jit):
    tx = egd(0.0, evolve_every=1, accept=accept.always(), recombine=rule)
    params = jnp.ones(4)

    def update(value_fn):
        step = lambda state: tx.update(params, state, params, value_fn=value_fn)  # noqa: E731
        return (jax.jit(step) if jit else step)(tx.init(params))[0]

    # The square root of what is negative; the rule is tried out on fitness above zero.
    chex.assert_trees_all_equal(update(lambda p: -jnp.sum(p)), jnp.zeros(4))
    assert (update(jnp.sum) != 0).all()


def test_a_leaf_whose_squares_overflow_stays_where_it_is():
    params = {"huge": jnp.full(4, 1e25), "fine": jnp.ones(4)}
    tx = evolve(optax.sgd(0.0), evolve_every=1, accept=accept.always())
    updates, state = tx.update(
        params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["fine"])
    )
    chex.assert_trees_all_equal(updates["huge"], jnp.zeros(4))
    assert (updates["fine"] != 0).all()
    assert bool(state.info.accepted)


@pytest.mark.wide
def test_reset_base_renews_the_momentum_only_after_a_jump_and_keeps_schedules():
    rate = optax.linear_schedule(0.1, 0.0, 100)
    params, grads = jnp.ones(3), jnp.ones(3)

    def step(value_fn, base, reset_base=True):
        tx = evolve(base, evolve_every=2, accept=accept.best(), sigma=0.1, reset_base=reset_base)
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(grads, state, params, value_fn=value_fn)
        return state

    base = optax.sgd(rate, momentum=0.9)
    jumped = step(jnp.sum, base)
    assert bool(jumped.info.accepted)
    trace, schedule = jumped.base_state
    chex.assert_trees_all_equal(trace.trace, jnp.zeros(3))
    assert int(schedule.count) == 2

    for state in (step(lambda p: 0.0 * p[0], base), step(jnp.sum, base, reset_base=False)):
        np.testing.assert_allclose(state.base_state[0].trace, 1.9)

    injected = step(jnp.sum, optax.inject_hyperparams(optax.adam)(learning_rate=rate))
    assert bool(injected.info.accepted)
    np.testing.assert_allclose(injected.base_state.hyperparams["learning_rate"], rate(1))
    chex.assert_trees_all_equal(injected.base_state.inner_state[0].mu, jnp.zeros(3))
