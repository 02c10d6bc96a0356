"""NumPyro: variational inference, whose adapter passes no `value_fn`: it is bound."""

import jax
import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.optim import optax_to_numpyro
import optax
import pytest

from egd_optax import bind_value_fn, evolve

X = jnp.linspace(-1.0, 1.0, 20)
Y = 2.0 * X - 1.0


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 5.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    numpyro.sample("y", dist.Normal(slope * x + intercept, 0.1), obs=y)


def test_inference_evolves():
    guide, elbo = AutoDelta(regression), Trace_ELBO()

    # All are on the real line, so that the guide's parameters are those of the optimizer.
    def value_fn(params):
        return elbo.loss(jax.random.key(1), params, regression, guide, X, Y)

    evolving = evolve(optax.adam(0.05), evolve_every=10, sigma=0.1)
    svi = SVI(regression, guide, optax_to_numpyro(bind_value_fn(evolving, value_fn)), elbo)
    result = svi.run(jax.random.key(0), 100, X, Y, progress_bar=False)
    _, (_, opt_state) = result.state.optim_state
    assert int(opt_state.cycle) == 10
    assert result.losses[-1] < result.losses[0]
    median = guide.median(result.params)
    assert float(median["slope"]) == pytest.approx(2.0, abs=0.3)
    assert float(median["intercept"]) == pytest.approx(-1.0, abs=0.3)


def test_without_binding_the_error_says_what_to_do():
    optimizer = optax_to_numpyro(evolve(optax.adam(0.05)))
    svi = SVI(regression, AutoDelta(regression), optimizer, Trace_ELBO())
    with pytest.raises(TypeError, match="bind_value_fn"):
        svi.run(jax.random.key(0), 2, X, Y, progress_bar=False)
