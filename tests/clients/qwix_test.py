"""Qwix: the loss of the quantized model as the fitness, whose rounding has no gradient."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import qwix

from egd_optax import evolve

# Qwix asks Flax for a name that Flax has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning")

X = jax.random.normal(jax.random.key(0), (32, 4))
Y = jnp.sin(X[:, :1]) * X[:, 1:2]
TX = evolve(optax.adam(1e-2), evolve_every=5, sigma=0.05)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))


MODEL = Network()
RULES = [qwix.QuantizationRule(module_path=".*", weight_qtype="int4")]
QUANTIZED = qwix.quantize_model(MODEL, qwix.QtProvider(RULES))


def loss_of(model):
    return lambda params: jnp.mean((model.apply({"params": params}, X) - Y) ** 2)


loss, deployed = loss_of(MODEL), loss_of(QUANTIZED)


@jax.jit
def step(params, state):
    updates, state = TX.update(jax.grad(loss)(params), state, params, value_fn=deployed)
    return optax.apply_updates(params, updates), state


def test_the_quantized_model_is_what_is_scored():
    start = MODEL.init(jax.random.key(1), X)["params"]
    assert deployed(start) != loss(start)
    params, state = start, TX.init(start)
    for _ in range(40):
        params, state = step(params, state)
    assert int(state.cycle) == 8
    assert deployed(params) < 0.7 * deployed(start)
