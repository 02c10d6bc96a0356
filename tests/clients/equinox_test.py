"""Equinox: a whole model as the parameters, and the filtered form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax import evolve

X = jnp.linspace(-1.0, 1.0, 32)[:, None]
Y = jnp.sin(3 * X)


def loss(model):
    return jnp.mean((jax.vmap(model)(X) - Y) ** 2)


def network():
    return eqx.nn.MLP(1, 1, width_size=8, depth=1, key=jax.random.key(0))


def evolving():
    return evolve(optax.adamw(1e-2), evolve_every=5)


def train_whole(steps):
    tx = evolving()
    model = network()
    state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(loss)(model)
        updates, state = tx.update(grads, state, model, value_fn=loss)
        return eqx.apply_updates(model, updates), state

    for _ in range(steps):
        model, state = step(model, state)
    return model, state


def train_filtered(steps):
    tx = evolving()
    params, static = eqx.partition(network(), eqx.is_inexact_array)
    state = tx.init(params)

    def value_fn(params):
        return loss(eqx.combine(params, static))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return eqx.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return eqx.combine(params, static), state


def test_a_whole_model_is_the_parameters():
    model, state = train_whole(20)
    assert int(state.cycle) == 4
    assert loss(model) < 0.8 * loss(network())
    assert model.activation is network().activation


def test_the_filtered_form_goes_the_same_way():
    (whole, state), (filtered, of_filtered) = train_whole(10), train_filtered(10)
    assert int(state.cycle) == int(of_filtered.cycle) == 2
    for one, two in zip(
        jax.tree.leaves(eqx.filter(whole, eqx.is_array)),
        jax.tree.leaves(eqx.filter(filtered, eqx.is_array)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
