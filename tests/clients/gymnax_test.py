"""Gymnax: a policy whose fitness is its negative return, without any gradient."""

import functools

import jax
import jax.numpy as jnp
import optax

from egd_optax import evolve
from examples.policy import episode

STEPS = 60
TX = evolve(optax.set_to_zero(), evolve_every=1, population_size=16, sigma=0.5, mutable=True)


def act(params, observation):
    hidden = jnp.tanh(observation @ params["in"])
    return jnp.argmax(hidden @ params["out"])


def negative_return(params):
    keys = jax.random.split(jax.random.key(0), 8)
    alive = functools.partial(episode, act=act, length=STEPS)
    return -jax.vmap(alive, in_axes=(None, 0))(params, keys).mean()


@jax.jit
def step(params, state):
    no_gradient = jax.tree.map(jnp.zeros_like, params)
    updates, state = TX.update(no_gradient, state, params, value_fn=negative_return)
    return optax.apply_updates(params, updates), state


def test_a_policy_is_found_without_a_gradient():
    one, two = jax.random.split(jax.random.key(1))
    start = {"in": jax.random.normal(one, (4, 8)), "out": jax.random.normal(two, (8, 2))}
    params, state = start, TX.init(start)
    for _ in range(10):
        params, state = step(params, state)
    assert int(state.cycle) == 10
    assert negative_return(params) < negative_return(start) - 10
