"""Runs cycles, and keeps every member that they evaluated."""

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax import Execution, evolve, noise

POPULATION = 5


def toy_params():
    keys = jax.random.split(jax.random.key(7), 2)
    return {
        "a": jax.random.normal(keys[0], (40, 30)),
        "b": {"c": 5.0 * jax.random.normal(keys[1], (50,)), "d": jnp.zeros((800,))},
    }


def fitness_of(params):
    return sum(((leaf - 0.3) ** 2).mean() for leaf in jax.tree.leaves(params))


def observed_by(score):
    """A `value_fn` that NumPy computes; each call waits for the one before."""
    return lambda params: io_callback(score, jax.ShapeDtypeStruct((), jnp.float32), params)


def record_cycle(population_size=POPULATION, **kwargs):
    """One step with a cycle: the members and the child in order, then the outcome."""
    seen, parent, landed, info = record_evaluations(population_size=population_size, **kwargs)
    return seen[:population_size], seen[population_size:], parent, landed, info


def record_evaluations(score_of=None, **kwargs):
    """One step with a cycle: all that was evaluated in order, the parent, and the outcome.

    `score_of` maps parameters to their fitness, which is `fitness_of` them otherwise.
    """
    seen = []

    def score(params):
        seen.append(jax.tree.map(np.array, params))
        return np.float32((score_of or fitness_of)(seen[-1]))

    params = toy_params()
    grads = jax.grad(fitness_of)(params)
    tx = evolve(optax.sgd(0.25), evolve_every=1, **kwargs)
    updates, state = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=observed_by(score)))(
        grads, tx.init(params), params
    )
    parent = jax.tree.map(lambda p, g: np.asarray(p - 0.25 * g), params, grads)
    landed = optax.apply_updates(params, updates)
    return seen, parent, landed, state.info


# A cycle on each step.
GROUND = {
    "evolve_every": 1,
    "population_size": 8,
    "sigma": 0.3,
    "noise": noise.gaussian(relative=False),
}


def record_steps(base, params, loss, value_fn, *, steps=1, **kwargs):
    """Steps of a base along the gradient of a loss, with a cycle each.

    Returns the last parameters, the state, and everything that was evaluated.
    """
    seen = []
    # Ordered callbacks fail in JAX beside elites that are paged to the host.
    ordered = "execution" not in kwargs
    tx = evolve(base, **{**GROUND, "execution": Execution(memory="device"), **kwargs})

    def recorded(params):
        jax.debug.callback(
            lambda tree: seen.append(jax.tree.map(np.asarray, tree)), params, ordered=ordered
        )
        return value_fn(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=recorded)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    jax.effects_barrier()
    return params, state, seen
