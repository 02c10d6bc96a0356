"""Gymnax: a policy whose fitness is its negative return, without any gradient."""

import gymnax
import jax
import jax.numpy as jnp
import optax

from egd_optax import evolve

STEPS = 60
ENV, ENV_PARAMS = gymnax.make("CartPole-v1")
TX = evolve(optax.set_to_zero(), evolve_every=1, population_size=16, sigma=0.5, mutable=True)


def act(params, observation):
    hidden = jnp.tanh(observation @ params["in"])
    return jnp.argmax(hidden @ params["out"])


def alive(params, key):
    """The steps before the pole first falls, a return of at most STEPS."""

    def play(carry, key):
        observation, state, upright = carry
        action = act(params, observation)
        observation, state, reward, *ended, _ = ENV.step(key, state, action, ENV_PARAMS)
        earned = reward * upright
        for end in ended:
            upright = upright * (1.0 - end)
        return (observation, state, upright), earned

    start, steps = jax.random.split(key)
    observation, state = ENV.reset(start, ENV_PARAMS)
    _, earned = jax.lax.scan(
        play, (observation, state, jnp.float32(1.0)), jax.random.split(steps, STEPS)
    )
    return earned.sum()


def negative_return(params):
    keys = jax.random.split(jax.random.key(0), 8)
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
