"""`window`: cycles on some of the steps alone, the same whoever decides on them."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import egd, evolve, is_due, presets
from egd_optax.wrappers import STATIC_ARGS

PARAMS = jnp.linspace(1.0, 2.0, 6)
STEPS = 24


def loss(params):
    return jnp.sum((jnp.sin(3 * params) + params**2) ** 2)


def run(tx, decide=None):
    """The cycles after each step, and the last parameters."""

    def step(params, state, evolve):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss, evolve=evolve)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, static_argnums=2)
    params, state, cycles = PARAMS, tx.init(PARAMS), []
    for number in range(1, STEPS + 1):
        params, state = step(params, state, None if decide is None else decide(number))
        cycles.append(int(optax.tree.get(state, "cycle")))
    return cycles, params


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("window", "has_cycles"),
    [
        (None, lambda step: True),
        ((0, 10), lambda step: step <= 10),
        ((7, None), lambda step: step > 7),
        ((6, 12), lambda step: 6 < step <= 12),
        ([5, 6], lambda step: step == 6),
    ],
    ids=["all", "first", "behind", "between", "list"],
)
def test_cycles_run_within_it(every, window, has_cycles):
    tx = evolve(optax.sgd(0.01), evolve_every=every, window=window, sigma=0.1)
    cycles, params = run(tx)
    due = [step % every == 0 and has_cycles(step) for step in range(1, STEPS + 1)]
    assert cycles == [sum(due[: step + 1]) for step in range(STEPS)]
    assert due == [is_due(step, every, window) for step in range(1, STEPS + 1)]
    traced = jax.jit(lambda step: is_due(step, every, window))
    assert due == [bool(traced(step)) for step in range(1, STEPS + 1)]
    decided, same = run(tx, lambda step: is_due(step, every, window))
    assert decided == cycles
    chex.assert_trees_all_close(same, params, rtol=1e-5)


def test_behind_it_the_steps_are_those_of_the_base():
    settings = {"evolve_every": 2, "sigma": 0.1}
    _, params = run(evolve(optax.sgd(0.01), window=(0, 4), **settings))
    tx = evolve(optax.sgd(0.01), **settings)
    _, stopped = run(tx, lambda step: is_due(step, 2) and step <= 4)
    chex.assert_trees_all_close(params, stopped, rtol=1e-5)


def test_a_search_ends_with_the_base_alone():
    tx = evolve(optax.sgd(0.01), **presets.global_search(sigma=0.5, cycles=6, population_size=8))
    assert run(tx)[0][-1] == 6


def test_it_is_static_under_injected_hyperparameters():
    tx = optax.inject_hyperparams(egd, static_args=STATIC_ARGS)(0.01, evolve_every=1, window=(2, 4))
    assert run(tx)[0][-1] == 2


@pytest.mark.parametrize(
    "make", [lambda **kw: egd(0.1, **kw), lambda **kw: evolve(optax.sgd(0.1), **kw)]
)
@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (10, TypeError, "`window` must be a pair of ints, got 10"),
        ((1, 2, 3), TypeError, "`window` must be a pair of ints"),
        ((0.5, 2), TypeError, "`window` must be a Python int, got 0.5"),
        ((-1, 2), ValueError, "`window` must be at least 0, got -1"),
        ((4, 4), ValueError, "`window` must end behind its start, got \\(4, 4\\)"),
        ((None, 4), TypeError, "`window` must be a Python int, got None"),
    ],
    ids=str,
)
def test_another_one_is_refused(make, window, error, message):
    with pytest.raises(error, match=message):
        make(window=window)
