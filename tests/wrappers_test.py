"""What happens to a cycle inside and around the wrappers of optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from egd_optax import accept, egd, evolve, with_frozen

PARAMS = {"a": jnp.linspace(1.0, 2.0, 5), "b": jnp.linspace(-1.0, 1.0, 3)}


def loss(params):
    return jnp.sum((params["a"] - 3.0) ** 2) + jnp.sum(params["b"] ** 2)


def run(tx, steps, params=PARAMS, value_fn=loss, grad_of=None, **extra):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(grad_of or value_fn)(params)
        passed = {name: value if given is None else given for name, given in extra.items()}
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **passed)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def cycles(state):
    return int(optax.tree.get(state, "EvolveState").cycle)


@pytest.mark.wide
def test_chain_before_is_part_of_the_base_step():
    args = {"evolve_every": 2, "sigma": 0.1}
    outside = run(optax.chain(optax.clip(0.5), egd(0.125, **args)), 4)
    inside = run(evolve(optax.chain(optax.clip(0.5), optax.sgd(0.125)), **args), 4)
    chex.assert_trees_all_close(outside[0], inside[0], rtol=1e-6)
    assert cycles(outside[1]) == 2


def test_chain_after_changes_where_a_jump_lands():
    args = {"evolve_every": 1, "sigma": 0.5, "accept": accept.always()}
    straight, _ = run(egd(0.0, **args), 1)
    halved, _ = run(optax.chain(egd(0.0, **args), optax.scale(0.5)), 1)
    chex.assert_trees_all_close(
        jax.tree.map(lambda h, p: 2 * (h - p), halved, PARAMS),
        jax.tree.map(lambda s, p: s - p, straight, PARAMS),
        atol=1e-6,
    )


def test_named_chain():
    _, state = run(
        optax.named_chain(("clip", optax.clip(1.0)), ("egd", egd(0.1, evolve_every=2))), 4
    )
    assert int(state["egd"].cycle) == 2


def test_evolve_around_accumulation_counts_micro_steps():
    base = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=3).gradient_transformation()
    _, state = run(evolve(base, evolve_every=6), 13)
    assert int(state.cycle) == 2
    assert int(state.base_state.gradient_step) == 4


@pytest.mark.wide
def test_inside_accumulation_the_caller_limits_the_cycle_to_the_last_micro_step():
    evaluated = []

    def counted(params):
        jax.debug.callback(lambda: evaluated.append(1))
        return loss(params)

    def run_micro_steps(decide):
        evaluated.clear()
        tx = optax.MultiSteps(egd(0.1, evolve_every=2, population_size=4), every_k_schedule=3)
        params, state = PARAMS, tx.init(PARAMS)
        for micro_step in range(1, 13):
            grads = jax.grad(loss)(params)
            updates, state = tx.update(
                grads, state, params, value_fn=counted, evolve=decide(micro_step)
            )
            params = optax.apply_updates(params, updates)
        jax.effects_barrier()
        return params, int(state.inner_opt_state.cycle), len(evaluated)

    with pytest.warns(UserWarning, match="runs a due cycle on each of its k micro-steps"):
        in_graph, cycles_run, forwards = run_micro_steps(lambda micro_step: None)
    decided, cycles_decided, forwards_decided = run_micro_steps(lambda m: m % 6 == 0)
    chex.assert_trees_all_close(in_graph, decided, rtol=1e-6)
    assert cycles_run == cycles_decided == 2
    assert forwards_decided == 2 * 5
    assert forwards == 3 * forwards_decided  # the cycle is repeated on every micro-step


@pytest.mark.wide
def test_apply_if_finite_holds_the_counter_while_gradients_are_not_finite():
    tx = optax.apply_if_finite(egd(0.1, evolve_every=2), max_consecutive_errors=5)
    state, params = tx.init(PARAMS), PARAMS
    for scale in (1.0, jnp.nan, jnp.nan, 1.0):
        grads = jax.tree.map(lambda g: g * scale, jax.grad(loss)(params))  # noqa: B023
        updates, state = tx.update(grads, state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(params)
    assert int(state.inner_state.count) == 2
    assert int(state.inner_state.cycle) == 1


def test_steps_that_a_condition_masks_do_not_count():
    tx = optax.conditionally_mask(egd(0.1, evolve_every=2), lambda step: step % 2 == 0)
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(4):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates)) == (step % 2 == 1)
        params = optax.apply_updates(params, updates)
    assert int(state.inner_state.count) == 2
    assert int(state.inner_state.cycle) == 1


def test_a_transformation_with_a_condition_is_for_a_part_of_the_base():
    """Around an optimizer, any one, it hands on the raw gradients if its condition is false."""
    for make in (egd, optax.sgd):
        tx = optax.conditionally_transform(make(0.1), lambda step: step < 1)
        state = tx.init(PARAMS)
        for _ in range(2):
            updates, state = tx.update(PARAMS, state, PARAMS, value_fn=loss)
        chex.assert_trees_all_equal(updates, PARAMS)
    clipped = optax.conditionally_transform(optax.clip(0.5), lambda step: step < 1)
    tx = evolve(optax.chain(clipped, optax.sgd(1.0)), evolve_every=7)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(updates)) == 0.5


def test_masked_leaves_are_seen_by_value_fn_and_left_alone():
    tx = optax.masked(
        egd(0.0, evolve_every=1, accept=accept.always(), sigma=0.5), {"a": True, "b": False}
    )
    updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, PARAMS),
        tx.init(PARAMS),
        PARAMS,
        value_fn=with_frozen(loss, PARAMS),
    )
    np.testing.assert_allclose(state.inner_state.info.parent_fitness, loss(PARAMS), rtol=1e-6)
    chex.assert_trees_all_equal(updates["b"], jnp.zeros(3))
    assert (updates["a"] != 0).all()


@pytest.mark.wide
def test_partition_evolves_its_own_leaves_with_extra_arguments():
    tx = optax.partition(
        {"evolved": egd(0.1, evolve_every=2), "plain": optax.adam(0.1)},
        {"a": "evolved", "b": "plain"},
    )

    def scaled(params, scale):
        return scale * loss(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            jax.grad(loss)(params),
            state,
            params,
            value_fn=with_frozen(scaled, params),
            scale=jnp.float32(2.0),
        )
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state)
    assert cycles(state) == 2
    assert loss(params) < loss(PARAMS)


@pytest.mark.wide
def test_reduce_on_plateau_belongs_into_the_base():
    base = optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(patience=1, factor=0.5))
    _, state = run(evolve(base, evolve_every=2), 6, value=jnp.float32(1.0))
    assert int(state.cycle) == 3
    assert float(state.base_state[-1].scale) < 1


@pytest.mark.wide
def test_lookahead_is_a_base_whose_parameters_are_pairs():
    params = optax.LookaheadParams.init_synced(PARAMS)
    base = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    tx = evolve(
        base, evolve_every=2, sigma=0.3, mutable=optax.LookaheadParams(fast=True, slow=False)
    )
    state = tx.init(params)
    for _ in range(4):
        grads = jax.grad(loss)(params.fast)
        updates, state = tx.update(grads, state, params, value_fn=lambda p: loss(p.fast))
        params = optax.apply_updates(params, updates)
    assert int(state.cycle) == 2
    assert loss(params.fast) < loss(PARAMS)


def test_inside_lookahead_the_missing_value_fn_is_an_error():
    tx = optax.lookahead(egd(0.1), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    with pytest.raises(TypeError, match="value_fn"):
        tx.update(PARAMS, tx.init(params), params, value_fn=loss)


@pytest.mark.wide
def test_schedule_free_selects_at_the_evaluation_parameters():
    tx = evolve(contrib.schedule_free_sgd(0.1), evolve_every=2, reset_base=True, sigma=0.1)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state):
        def value_fn(member):
            return loss(contrib.schedule_free_eval_params(state.base_state, member))

        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    evaluated = contrib.schedule_free_eval_params(state.base_state, params)
    assert loss(evaluated) < 0.1 * loss(PARAMS)
    assert int(state.cycle) == 10


@pytest.mark.wide
def test_an_average_of_the_parameters_follows_the_jumps():
    tx = egd(0.1, evolve_every=1, sigma=0.2)
    params, state, average = PARAMS, tx.init(PARAMS), PARAMS
    for _ in range(2):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
        expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, params, average)
        average = optax.incremental_update(params, average, step_size=0.25)
        chex.assert_trees_all_close(average, expected, rtol=1e-6)


@pytest.mark.wide
def test_two_evolves_run_their_own_cycles():
    inner = evolve(optax.sgd(0.1), evolve_every=2, sigma=0.02)
    params, state = run(evolve(inner, evolve_every=3, sigma=0.2, key=1), 6)
    assert int(state.cycle) == 2
    assert int(state.base_state.cycle) == 3
    assert float(state.info.sigma) != float(state.base_state.info.sigma)
    assert loss(params) < loss(PARAMS)
