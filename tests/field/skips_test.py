"""Micro-steps that `optax.MultiSteps` skips: they count as none, so that cycles stay real steps."""

import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import evolve, is_due

PARAMS = {"a": jnp.linspace(1.0, 2.0, 6), "b": jnp.ones((2, 3))}


def loss(params):
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def accumulated(every_k, base=None):
    base = optax.MultiSteps(
        base or optax.adam(0.05), every_k, should_skip_update_fn=optax.skip_not_finite
    )
    return base.gradient_transformation()


def partitioned():
    bases = {"a": accumulated(2), "b": accumulated(2, optax.sgd(0.1))}
    return optax.partition(bases, {"a": "a", "b": "b"})


BASES = {
    "alone": lambda: accumulated(2),
    "of one": lambda: accumulated(1),
    "in a chain": lambda: optax.chain(accumulated(2), optax.scale(1.0)),
    "in parts": partitioned,
    "around cycles": lambda: evolve(accumulated(2), evolve_every=4, sigma=0.1, key=3),
}


def by_counter(tx):
    return jax.jit(lambda grads, state, params: tx.update(grads, state, params, value_fn=loss))


def by_host(tx, every):
    def step(grads, state, params):
        due = is_due(int(state.count) + 1, every)
        return tx.update(grads, state, params, value_fn=loss, evolve=due)

    return step


def run(tx, step, gradients):
    """The parameters and the state after these gradients, one of None being NaN."""
    params, state = PARAMS, tx.init(PARAMS)
    for is_finite in gradients:
        grads = jax.grad(loss)(params)
        if not is_finite:
            grads = jax.tree.map(lambda leaf: leaf * jnp.nan, grads)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("decided", ["by counter", "by host"])
def test_a_run_with_skipped_micro_steps_is_the_run_without_them(name, decided):
    # Skipped ones come first, twice, on the step that is due, after it, and last.
    gradients = [0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0]
    tx = evolve(BASES[name](), evolve_every=4, sigma=0.2)
    step = by_counter(tx) if decided == "by counter" else by_host(tx, 4)
    params, state = run(tx, step, gradients)
    plain, expected = run(tx, step, filter(None, gradients))
    assert int(state.count) == int(expected.count) == sum(gradients)
    assert int(state.cycle) == 2
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, plain))


def test_a_cycle_on_every_step_runs_on_none_that_was_skipped():
    tx = evolve(accumulated(1), evolve_every=1, sigma=0.2)
    _, state = run(tx, by_counter(tx), [1, 0, 0, 1])
    assert int(state.cycle) == 2


def test_a_step_that_another_part_of_the_base_takes_counts():
    """The gradient of one part alone is NaN: the other part steps."""
    tx = evolve(partitioned(), evolve_every=2, sigma=0.2)
    grads = jax.grad(loss)(PARAMS)
    grads["b"] = grads["b"] * jnp.nan
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=loss)
    assert int(state.count) == 1
