"""dm-haiku: a transformed network trained on a task of two classes."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from egd_optax import egd

X = jax.random.normal(jax.random.key(0), (64, 2))
LABELS = (X[:, 0] * X[:, 1] > 0).astype(jnp.int32)


def logits(x):
    return hk.nets.MLP([8, 2])(x)


NETWORK = hk.without_apply_rng(hk.transform(logits))
TX = egd(0.1, momentum=0.9, evolve_every=10)


def loss(params):
    scores = NETWORK.apply(params, X)
    return optax.softmax_cross_entropy_with_integer_labels(scores, LABELS).mean()


@jax.jit
def step(params, state):
    updates, state = TX.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state


def test_a_haiku_network_trains():
    start = NETWORK.init(jax.random.key(1), X)
    params, state = start, TX.init(start)
    for _ in range(40):
        params, state = step(params, state)
    assert int(state.cycle) == 4
    assert loss(params) < 0.7 * loss(start)
