"""An ensemble under `jax.vmap`: a key for each of its models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve


def _mutants_win(params):
    return -jnp.sum((params - 1.0) ** 2)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("raw", [False, True])
def test_an_ensemble_with_a_key_per_model_gets_the_noise_of_each_model_alone(raw):
    def optimizer(key):
        return evolve(
            optax.sgd(0.0),
            evolve_every=1,
            population_size=2,
            sigma=0.1,
            accept=accept.always(),
            key=key,
        )

    def step(state, params):
        return optimizer(0).update(jnp.zeros_like(params), state, params, value_fn=_mutants_win)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    keys = jax.random.key_data(keys) if raw else keys
    models = jnp.ones((3, 50))
    states = jax.vmap(lambda key, params: optimizer(key).init(params))(keys, models)
    noise = jax.jit(jax.vmap(step))(states, models)
    assert len({row.tobytes() for row in np.asarray(noise)}) == 3
    for model, key in enumerate(keys):
        alone = jax.jit(step)(optimizer(key).init(models[model]), models[model])
        np.testing.assert_array_equal(noise[model], alone)
