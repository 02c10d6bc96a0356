"""Members that are never formed: their fitness is that of the members formed."""

from factored_models import MODELS
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import noise
from egd_optax._factored import Factored, evaluate

MEMBERS = 5


def members_of(params, kind, sigma=0.1):
    """Members of a population, each leaf once formed and once, where it has factors, not."""
    leaves, treedef = jax.tree.flatten(params)
    keys = [jax.random.key(seed) for seed in range(len(leaves))]

    def member(number):
        whole, factored = [], []
        for key, leaf in zip(keys, leaves, strict=True):
            std = sigma * jnp.maximum(jnp.sqrt(jnp.mean(leaf**2)), 1e-2)
            parts = kind.draw(jax.random.fold_in(key, number), std, leaf)
            formed = leaf + kind.form(parts, leaf)
            whole.append(formed)
            if kind._has_factors(leaf):
                factored.append(Factored(leaf, *kind._factors(parts, leaf)))
            else:
                factored.append(formed)
        return jax.tree.unflatten(treedef, whole), jax.tree.unflatten(treedef, factored)

    return member


def scores(model, kind):
    params, loss = model()
    member = members_of(params, kind)
    numbers = jnp.arange(MEMBERS)
    formed = jax.jit(lambda: lax.map(lambda number: loss(member(number)[0]), numbers))()
    factored = jax.jit(
        lambda: jax.vmap(lambda number: evaluate(loss, member(number)[1]))(numbers)
    )()
    return np.asarray(formed), np.asarray(factored)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_fitness_of_the_formed_members(name, rank):
    formed, factored = scores(MODELS[name], noise.low_rank(rank))
    assert np.std(formed) > 1e-4 * abs(np.mean(formed))
    np.testing.assert_allclose(factored, formed, rtol=1e-5)
