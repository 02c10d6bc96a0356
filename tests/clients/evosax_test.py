"""Cycles around a base that does nothing are strategies of evosax, generation by generation.

With `es_optimizer` they are Open_ES, with `noise.separable` SNES.
"""

from evosax.algorithms import SNES, Open_ES
import jax
from jax.experimental import io_callback
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve, noise, recombine

POPULATION, SIGMA = 16, 0.1
STEPS = {"adam": optax.adam(0.05), "momentum": optax.sgd(0.5, 0.9)}
SIGMAS = {
    "constant": optax.constant_schedule(SIGMA),
    "decaying": optax.exponential_decay(SIGMA, 8, 0.3),
}


@pytest.mark.parametrize("decay", SIGMAS)
@pytest.mark.parametrize("name", STEPS)
def test_every_update_is_that_of_open_es(name, decay):
    """Open_ES is told our members and their fitness, and its mean is where our parameters are."""
    params = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}
    population, scores = [], []

    def note(member, value):
        population.append(ravel_pytree(member)[0])
        scores.append(value)

    def value_fn(params):
        value = sum(jnp.sum(jnp.abs(leaf - 0.5)) for leaf in jax.tree.leaves(params))
        io_callback(note, None, params, value)
        return value

    # Open_ES divides by the population, and weighs by ranks from -1/2 to 1/2; the weights of
    # `centered_rank` above zero sum to one. This is the ratio where no two tie.
    scale = POPULATION / (8 * (POPULATION - 1))
    sigma = SIGMAS[decay]
    over_variance = optax.scale_by_schedule(lambda generation: 1 / sigma(generation) ** 2)
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, population_size=POPULATION, antithetic=True,
        sigma=sigma, noise=noise.gaussian(relative=False), recombine=recombine.centered_rank(),
        es_optimizer=optax.chain(optax.scale(scale), over_variance, STEPS[name]),
        accept=accept.always(),
    )  # fmt: skip
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    # It asks its schedule behind a generation, with the number of that generation.
    theirs = Open_ES(
        POPULATION, params, optimizer=STEPS[name], std_schedule=lambda at: sigma(at + 1)
    )
    settings = theirs.default_params
    mean = theirs.init(jax.random.key(0), params, settings).replace(std=sigma(0))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(zeros, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(8):
        population.clear()
        scores.clear()
        params, state = jax.block_until_ready(step(params, state))
        jax.effects_barrier()
        told = jnp.stack(population), jnp.stack(scores)
        mean, _ = theirs.tell(jax.random.key(0), *_as_trees(theirs, *told), mean, settings)
        np.testing.assert_allclose(mean.mean, ravel_pytree(params)[0], rtol=2e-5, atol=2e-5)
    assert np.abs(mean.mean - ravel_pytree(zeros)[0]).max() > 0.1


def utilities(fitness):
    """The weights of natural evolution strategies, as evosax has them: of ranks, sum zero."""
    rank = jnp.argsort(jnp.argsort(fitness)) + 1
    gain = jnp.maximum(jnp.log(fitness.size / 2 + 1) - jnp.log(rank), 0)
    return gain / jnp.sum(gain) - 1 / fitness.size


def test_every_generation_is_that_of_snes():
    """SNES is told our members and their fitness: its mean and its deviations are ours."""
    params = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}
    population, scores = [], []

    def note(member, value):
        population.append(ravel_pytree(member)[0])
        scores.append(value)

    def value_fn(params):
        value = 10 * jnp.sum(jnp.abs(params["w"] - 0.5)) + jnp.sum(params["b"] ** 2)
        io_callback(note, None, params, value)
        return value

    tx = evolve(
        optax.set_to_zero(), evolve_every=1, population_size=POPULATION, antithetic=True,
        sigma=SIGMA, noise=noise.separable(), recombine=recombine.member_weights(utilities),
        accept=accept.always(),
    )  # fmt: skip
    theirs = SNES(POPULATION, params)
    settings = theirs.default_params.replace(std_init=SIGMA)
    their = theirs.init(jax.random.key(0), params, settings)
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    np.testing.assert_allclose(settings.weights, utilities(jnp.arange(16.0)), atol=1e-6)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(zeros, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(8):
        population.clear()
        scores.clear()
        params, state = jax.block_until_ready(step(params, state))
        jax.effects_barrier()
        told = jnp.stack(population), jnp.stack(scores)
        their, _ = theirs.tell(jax.random.key(0), *_as_trees(theirs, *told), their, settings)
        np.testing.assert_allclose(their.mean, ravel_pytree(params)[0], rtol=1e-4, atol=1e-5)
        log_std = ravel_pytree(state.strategy_state.noise.log_std)[0]
        np.testing.assert_allclose(their.std, SIGMA * jnp.exp(log_std), rtol=1e-4)
    assert np.ptp(log_std) > 0.1


def _as_trees(strategy, population, scores):
    """What Open_ES takes: a pytree of members, and their fitness."""
    return jax.vmap(strategy._unravel_solution)(population), scores
