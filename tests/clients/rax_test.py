"""Rax: NDCG, which has no gradient, as the fitness beside the gradients of a surrogate."""

import jax
import jax.numpy as jnp
import optax
import pytest
import rax

from egd_optax import evolve

ITEMS = jax.random.normal(jax.random.key(0), (8, 10, 4))
RELEVANCE = jnp.floor(2 * jax.nn.sigmoid(3 * ITEMS[..., 0] * ITEMS[..., 1]) + 0.5)
TX = evolve(optax.sgd(0.01), evolve_every=5, population_size=32, sigma=0.5)


def scores(params):
    return jnp.tanh(ITEMS @ params["in"]) @ params["out"]


def surrogate(params):
    return rax.softmax_loss(scores(params), RELEVANCE)


def negative_ndcg(params):
    return -rax.ndcg_metric(scores(params), RELEVANCE)


@jax.jit
def step(params, state):
    grads = jax.grad(surrogate)(params)
    updates, state = TX.update(grads, state, params, value_fn=negative_ndcg)
    return optax.apply_updates(params, updates), state


def test_a_ranking_metric_is_the_fitness():
    one, two = jax.random.split(jax.random.key(1))
    start = {"in": jax.random.normal(one, (4, 8)), "out": jax.random.normal(two, (8,))}
    params, state = start, TX.init(start)
    for _ in range(40):
        params, state = step(params, state)
    assert int(state.cycle) == 8
    assert negative_ndcg(params) < negative_ndcg(start) - 0.02
    # The same metric in another program, within its rounding.
    assert float(state.info.best_fitness) == pytest.approx(float(negative_ndcg(params)), abs=1e-6)
