"""Leaves that are no parameters are fixed, as in optax: functions, gaps, what has no update."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, accept, evolve, noise

X = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    """A model that is a pytree of all that it holds, as modules of Equinox are."""

    weight: Any
    activation: Any
    bias: Any
    nothing: Any = None

    def __call__(self, x):
        return self.activation(x @ self.weight) + self.bias


NET = Net(jnp.ones((3, 2)), jnp.tanh, jnp.zeros(2))


def loss(net):
    return jnp.mean((net(X) - 0.3) ** 2)


def arrays_of(net):
    return dataclasses.replace(net, activation=None)


def gradient(net):
    return jax.grad(lambda arrays: loss(dataclasses.replace(arrays, activation=net.activation)))(
        arrays_of(net)
    )


def applied(net, updates):
    """What libraries of such models do: where there is no update, a leaf stays."""
    return jax.tree.map(
        lambda update, leaf: leaf if update is None else leaf + update,
        updates,
        net,
        is_leaf=lambda leaf: leaf is None,
    )


@pytest.mark.crossed(1)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("reset_base", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"noise": noise.low_rank(), "execution": Execution(candidate_batch_size=4)}],
    ids=["default", "low rank"],
)
def test_a_whole_model_is_evaluated_and_only_its_arrays_move(kwargs, reset_base, jit):
    tx = evolve(optax.adamw(1e-2), evolve_every=2, reset_base=reset_base, sigma=0.2, **kwargs)

    def update(arrays, state):
        net = dataclasses.replace(arrays, activation=jnp.tanh)
        return tx.update(gradient(net), state, net, value_fn=loss)

    update = jax.jit(update) if jit else update
    net, state = NET, tx.init(arrays_of(NET))
    structure = jax.tree.structure(state)
    for _ in range(4):
        updates, state = update(arrays_of(net), state)
        assert updates.activation is None
        net = applied(net, updates)
    assert jax.tree.structure(state) == structure
    assert int(state.cycle) == 2
    assert net.activation is jnp.tanh
    assert loss(net) < loss(NET)


def test_a_whole_model_has_the_noise_of_its_arrays():
    """Functions stand behind the arrays here: the position of a leaf is what it was."""
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=accept.always())
    whole = {"weight": jnp.ones(4), "zfunction": jnp.tanh}
    bare = {"weight": jnp.ones(4), "zfunction": None}
    grads = {"weight": jnp.ones(4), "zfunction": None}
    fn = lambda params: jnp.sum(params["weight"])  # noqa: E731
    updates = [tx.update(grads, tx.init(bare), params, value_fn=fn)[0] for params in (whole, bare)]
    chex.assert_trees_all_equal(*updates)


def test_a_leaf_without_an_update_stays():
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=accept.always(), mutable=lambda _: True)
    params = {"moves": jnp.ones(3), "fixed": jnp.ones(2), "nothing": None}
    grads = {"moves": jnp.ones(3), "fixed": None, "nothing": None}
    seen = []

    def value_fn(params):
        seen.append(params["fixed"].shape)
        return jnp.sum(params["moves"]) * jnp.sum(params["fixed"])

    updates, state = tx.update(grads, tx.init({**params, "fixed": None}), params, value_fn=value_fn)
    assert updates["fixed"] is None
    assert set(seen) == {(2,)}
    assert bool(state.info.accepted)


def test_a_mask_may_be_a_module_that_can_be_called():
    mask = Net(weight=True, activation=False, bias=False)
    params = Net(jnp.ones((3, 2)), jnp.ones(1), jnp.zeros(2))
    tx = evolve(optax.sgd(0.0), evolve_every=1, accept=accept.always(), mutable=mask)
    fn = lambda net: jnp.sum(net.weight + net.bias)  # noqa: E731
    updates, _ = tx.update(params, tx.init(params), params, value_fn=fn)
    assert (updates.weight != 0).all()
    chex.assert_trees_all_equal(updates.bias, jnp.zeros(2))


def test_a_function_of_the_parameters_still_chooses():
    params = {"w": jnp.ones(3), "b": jnp.ones(3)}
    tx = evolve(
        optax.sgd(0.0),
        evolve_every=1,
        accept=accept.always(),
        mutable=lambda p: {"w": True, "b": False},
    )
    updates, _ = tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"]))
    chex.assert_trees_all_equal(updates["b"], jnp.zeros(3))
