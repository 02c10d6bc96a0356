"""A step without a cycle is a step of the base optimizer, to the bit."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, egd, evolve, is_due

pytestmark = pytest.mark.exact


def problem():
    keys = jax.random.split(jax.random.key(3), 4)
    params = {"w": jax.random.normal(keys[0], (17, 5)), "b": jax.random.normal(keys[1], (5,))}
    grads = {"w": jax.random.normal(keys[2], (17, 5)), "b": jax.random.normal(keys[3], (5,))}
    return params, grads


def loss(params):
    return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(params))


def assert_same_steps(tx, reference, steps=4, **update_args):
    params, grads = problem()
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss, **update_args))
    expected = jax.jit(reference.update)
    state, reference_state = tx.init(params), reference.init(params)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        reference_updates, reference_state = expected(grads, reference_state, params)
        chex.assert_trees_all_equal(updates, reference_updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, reference_updates)
        chex.assert_trees_all_equal(state.base_state, reference_state)
        params = optax.apply_updates(params, updates)
    assert int(state.count) == steps
    assert int(state.cycle) == 0


SGD = [(None, False), (0.0, False), (0.9, False), (0.9, True)]


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay", "decide"),
    [
        *((*settings, decay, False) for settings in SGD for decay in (0.0, 1e-2)),
        # With the cycle in the program, whose idle steps pass on what these make.
        (None, False, 0.0, None),
        (0.9, True, 1e-2, None),
    ],
)
def test_egd_is_the_sgd_chain(momentum, nesterov, weight_decay, decide):
    reference = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(0.1, momentum, nesterov)
    )
    tx = egd(0.1, momentum, nesterov, weight_decay=weight_decay)
    assert_same_steps(tx, reference, evolve=decide)


@pytest.mark.wide
def test_egd_passes_schedules_and_the_accumulator_dtype_on():
    rate, decay = optax.cosine_decay_schedule(0.1, 10), optax.linear_schedule(1e-2, 0.0, 10)
    reference = optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(rate, momentum=0.9, accumulator_dtype=jnp.bfloat16),
    )
    tx = egd(rate, momentum=0.9, weight_decay=decay, accumulator_dtype=jnp.bfloat16)
    assert_same_steps(tx, reference)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    ("base", "memory"),
    [
        (optax.adam(1e-2), "host"),
        (optax.adam(1e-2), "device"),
        (optax.adam(1e-2), "replay"),
        (optax.adamw(1e-2), "host"),
        (optax.lion(1e-3), "host"),
        (optax.rmsprop(1e-2), "host"),
    ],
    ids=["adam-host", "adam-device", "adam-replay", "adamw", "lion", "rmsprop"],
)
def test_evolve_is_its_base(base, memory):
    assert_same_steps(evolve(base, execution=Execution(memory=memory)), base, steps=3)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_updates_keep_their_values(dtype):
    params, grads = jax.tree.map(lambda x: x.astype(dtype), problem())
    base = optax.sgd(0.1, momentum=0.9)
    tx = evolve(base)
    updates, _ = jax.jit(lambda: tx.update(grads, tx.init(params), params, value_fn=loss))()
    expected, _ = jax.jit(base.update)(grads, base.init(params), params)
    chex.assert_trees_all_equal(jax.tree.map(lambda u: u.astype(dtype), updates), expected)
    chex.assert_trees_all_equal(
        optax.apply_updates(params, updates), optax.apply_updates(params, expected)
    )


def test_cycles_run_on_the_steps_that_is_due_names():
    params, grads = problem()
    tx = egd(0.1, evolve_every=3)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
    state, cycles = tx.init(params), []
    for _ in range(10):
        _, state = update(grads, state, params)
        cycles.append(int(state.cycle))
    assert cycles == [sum(is_due(s, 3) for s in range(1, step + 1)) for step in range(1, 11)]
    assert cycles == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert bool(is_due(jnp.int32(6), 3))
    assert not bool(is_due(jnp.int32(5), 3))


@pytest.mark.wide
def test_the_host_may_decide_and_gets_the_same_bits():
    params, grads = problem()
    tx = egd(0.1, momentum=0.9, evolve_every=3, sigma=0.1)

    def run(decide):
        update = jax.jit(
            lambda g, s, p, e: tx.update(g, s, p, value_fn=loss, evolve=e), static_argnums=3
        )
        p, state = params, tx.init(params)
        for step in range(1, 8):
            updates, state = update(grads, state, p, decide(step))
            p = optax.apply_updates(p, updates)
        return p, state

    in_graph = run(lambda step: None)
    on_host = run(lambda step: is_due(step, 3))
    assert int(in_graph[1].cycle) == 2
    chex.assert_trees_all_equal(on_host, in_graph)


def test_an_idle_program_needs_no_value_fn_and_holds_no_cycle():
    params, grads = problem()
    tx = egd(0.1)
    idle = jax.make_jaxpr(lambda: tx.update(grads, tx.init(params), params, evolve=False))()
    assert "while" not in str(idle)
    assert "cond" not in str(idle)
