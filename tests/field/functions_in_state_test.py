"""States that hold functions and strings: these stay, and the arrays are those of a plain state."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import accept, evolve, recombine

PARAMS = {"w": jnp.linspace(1.0, 2.0, 6), "b": jnp.ones((2, 3))}


class Odd(NamedTuple):
    mu: Any
    activation: Any
    tag: Any


def momentum(learning_rate, *others):
    """Momentum, whose state holds other things too."""

    def init(params):
        return Odd(jax.tree.map(jnp.zeros_like, params), *others)

    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: 0.9 * m + g, state.mu, grads)
        return jax.tree.map(lambda m: -learning_rate * m, mu), state._replace(mu=mu)

    return optax.GradientTransformation(init, update)


ODD, PLAIN = (jax.nn.relu, "tag"), (None, None)


def loss(params):
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def settings(name, others):
    return {
        "plain": {},
        "reset": {"reset_base": True},
        "reset by a function": {"reset_base": lambda old, fresh: fresh._replace(tag=old.tag)},
        "direction": {
            "es_optimizer": momentum(0.1, *others),
            "recombine": recombine.centered_rank(),
            "accept": accept.always(),
        },
    }[name]


def split(tree):
    """The arrays of a tree, and what puts others in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def joined(arrays):
        whole = list(leaves)
        for at, array in zip(places, arrays, strict=True):
            whole[at] = array
        return jax.tree.unflatten(treedef, whole)

    return [leaves[at] for at in places], joined


def run(name, others, *, jit):
    tx = evolve(
        momentum(0.01, *others), evolve_every=2, sigma=0.2, generations=2, **settings(name, others)
    )
    params, state = PARAMS, tx.init(PARAMS)
    _, joined = split(state)

    def step(params, arrays):
        updates, state = tx.update(jax.grad(loss)(params), joined(arrays), params, value_fn=loss)
        return optax.apply_updates(params, updates), split(state)[0]

    step = jax.jit(step) if jit else step
    for _ in range(4):
        params, arrays = step(params, split(state)[0])
        state = joined(arrays)
    assert int(state.cycle) == 2
    return params, state


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", ["plain", "reset", "reset by a function", "direction"])
def test_functions_in_a_state_stay_and_change_nothing(name, jit):
    params, state = run(name, ODD, jit=jit)
    expected, plain = run(name, PLAIN, jit=jit)
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(split(state)[0], split(plain)[0])
    assert state.base_state[1:] == ODD
    if name == "direction":
        assert state.strategy_state.es_optimizer[1:] == ODD


def test_the_state_of_another_direction_is_refused_by_name():
    tx = evolve(optax.sgd(0.1), evolve_every=1, es_optimizer=momentum(0.1, *ODD))
    state = evolve(optax.sgd(0.1), evolve_every=1, es_optimizer=optax.adam(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match="`state.strategy_state.es_optimizer` must be that of"):
        tx.update(PARAMS, state, PARAMS, value_fn=loss)
