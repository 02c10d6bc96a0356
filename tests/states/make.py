"""Stores the state of this version, for the tests of later ones: `python tests/states/make.py`.

Run once a release, before anything of the next one is changed.
"""

from pathlib import Path

from flax import serialization
import jax
import jax.numpy as jnp
import optax

import egd_optax
from egd_optax import evolve

HERE = Path(__file__).parent
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}
STEPS = 4


def optimizers():
    """By name, what a state is stored of."""
    return {
        "adam": evolve(optax.adam(0.01), evolve_every=3, sigma=0.1, key=5),
        "stepped": evolve(
            optax.sgd(0.01, 0.9), evolve_every=3, sigma=0.1, key=5, es_optimizer=optax.adam(0.01)
        ),
    }


def loss(params):
    return sum(jnp.sum((leaf.astype(jnp.float32) - 0.5) ** 2) for leaf in jax.tree.leaves(params))


def advance(tx, params, state, steps):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


if __name__ == "__main__":
    for name, tx in optimizers().items():
        saved = advance(tx, PARAMS, tx.init(PARAMS), STEPS)
        path = HERE / f"{egd_optax.__version__}_{name}.msgpack"
        path.write_bytes(serialization.to_bytes(saved))
