"""Fitness that no gradient sees: what a user truly wants, as `value_fn`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import evolve, noise

KEYS = jax.random.split(jax.random.key(3), 3)
# A third of the examples is positive, and the classes overlap.
X = jax.random.normal(KEYS[0], (240, 6))
LABELS = (X @ jnp.arange(1.0, 7.0) + 3 * jax.random.normal(KEYS[1], (240,))) > 5.0
START = {"w": 0.3 * jax.random.normal(KEYS[2], (6,)), "b": jnp.zeros(())}


def predict(params):
    return X @ params["w"] + params["b"] > 0


def cross_entropy(params):
    logits = X @ params["w"] + params["b"]
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, LABELS))


def error_rate(params):
    return jnp.mean(predict(params) != LABELS)


def one_minus_f1(params):
    hits = jnp.sum(predict(params) & LABELS)
    return 1.0 - 2.0 * hits / (jnp.sum(predict(params)) + jnp.sum(LABELS))


def int8(weights):
    scale = jnp.max(jnp.abs(weights)) / 127.0
    return jnp.round(weights / scale).astype(jnp.int8).astype(jnp.float32) * scale


def int8_loss(params):
    return cross_entropy({"w": int8(params["w"]), "b": params["b"]})


def loss_of_few_weights(params):
    used = jnp.abs(params["w"]) > 0.1
    return cross_entropy({"w": params["w"] * used, "b": params["b"]}) + 0.01 * jnp.sum(used)


@pytest.mark.wide
@pytest.mark.parametrize("metric", [error_rate, one_minus_f1, int8_loss, loss_of_few_weights])
def test_a_metric_without_gradient_is_improved_by_cycles_alone(metric):
    tx = evolve(
        optax.sgd(0.0),
        evolve_every=1,
        population_size=16,
        sigma=0.3,
        noise=noise.gaussian(relative=False),
    )

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(metric)(params), state, params, value_fn=metric)
        return optax.apply_updates(params, updates), (state, state.info)

    params, state, fitness = START, tx.init(START), []
    for _ in range(15):
        params, (state, info) = step(params, state)
        fitness.append(float(info.parent_fitness))
    assert np.all(np.diff(fitness) <= 1e-6)  # never worse
    assert float(metric(params)) < 0.8 * fitness[0]


def test_the_base_step_still_follows_the_loss():
    tx = evolve(optax.adam(0.05), evolve_every=5)

    @jax.jit
    def step(params, state):
        grads = jax.grad(cross_entropy)(params)
        updates, state = tx.update(grads, state, params, value_fn=one_minus_f1)
        return optax.apply_updates(params, updates), state

    params, state = START, tx.init(START)
    for _ in range(40):
        params, state = step(params, state)
    assert cross_entropy(params) < cross_entropy(START)
    assert float(one_minus_f1(params)) <= float(state.info.parent_fitness)
