"""A state that comes back from a file in another form goes on as it was, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve, noise

PARAMS = jnp.linspace(-1.0, 2.0, 8)
BOTH = pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])


def loss(params):
    return jnp.sum((params - 0.3) ** 2)


def optimizer(**kwargs):
    settings = {"evolve_every": 1, "sigma": 0.3, "es_optimizer": optax.adam(0.1), **kwargs}
    return evolve(optax.adam(0.1), **settings)


@pytest.fixture
def state():
    tx = optimizer()
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss)[1]


def stepped(state, jit=jax.jit):
    update = jit(lambda state: optimizer().update(PARAMS, state, PARAMS, value_fn=loss))
    return update(state)


@BOTH
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_key_data_of_another_integer_is_the_same_key(state, dtype, jit):
    """As json, torch and hdf5 give it back, which have no uint32."""
    state = state._replace(key_data=jnp.asarray([1, 2**32 - 5], jnp.uint32))
    foreign = np.asarray(state.key_data).view(np.int32).astype(dtype)
    found, _ = stepped(state._replace(key_data=foreign), jit)
    np.testing.assert_array_equal(found, stepped(state, jit)[0])


@BOTH
def test_counters_may_be_python_numbers(state, jit):
    found, after = stepped(state._replace(count=1, cycle=1), jit)
    np.testing.assert_array_equal(found, stepped(state, jit)[0])
    assert (after.count, after.cycle) == (2, 2)


def ones_like(tree, shape):
    return jax.tree.map(lambda leaf: jnp.ones(shape) if leaf.ndim else leaf, tree)


FOREIGN = {
    "key_data": lambda s: s._replace(key_data=[0, 0]),
    "key_data ": lambda s: s._replace(key_data=jnp.zeros(2)),
    "key_data  ": lambda s: s._replace(key_data=jnp.zeros(4, jnp.uint32)),
    "count": lambda s: s._replace(count=jnp.float32(1)),
    "count ": lambda s: optax.tree.cast(s, jnp.bfloat16),
    "cycle": lambda s: s._replace(cycle=s.cycle[None]),
    "cycle ": lambda s: s._replace(cycle=True),
    "info": lambda s: s._replace(info=None),
    "info.best_fitness": lambda s: s._replace(info=s.info._replace(best_fitness=jnp.ones(3))),
    "strategy_state.es_optimizer[0].mu": lambda s: s._replace(
        strategy_state=ones_like(s.strategy_state, (1,))
    ),
    "strategy_state.es_optimizer": lambda s: s._replace(
        strategy_state=s.strategy_state._replace(es_optimizer=())
    ),
}


@BOTH
@pytest.mark.parametrize("field", FOREIGN)
def test_a_field_of_another_kind_or_shape_is_named(state, field, jit):
    message = f"`state.{field.strip()}` must be that of this optimizer, got".replace("[", r"\[")
    with pytest.raises(ValueError, match=message):
        stepped(FOREIGN[field](state), jit)


class Counted(noise.Noise):
    def init(self, params):
        return jnp.zeros([2])


class Ruled(accept.Accept):
    def init(self, params):
        return {"temperature": jnp.float32(1)}


@pytest.mark.parametrize(
    ("field", "kwargs", "foreign"),
    [
        ("noise", {"noise": Counted()}, jnp.zeros(())),
        ("accept['temperature']", {"accept": Ruled()}, {"temperature": jnp.ones(4)}),
    ],
)
def test_so_is_one_of_an_operator(field, kwargs, foreign):
    tx = optimizer(**kwargs)
    state = tx.init(PARAMS)
    name = field.split("[")[0]
    strategy = state.strategy_state._replace(**{name: foreign})
    message = f"`state.strategy_state.{field}` must be".replace("[", r"\[")
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, state._replace(strategy_state=strategy), PARAMS, value_fn=loss)


def test_the_number_of_cycles_saturates_like_that_of_steps(state):
    largest = jnp.int32(2**31 - 1)
    _, after = stepped(state._replace(count=largest, cycle=largest))
    assert (after.count, after.cycle) == (largest, largest)
