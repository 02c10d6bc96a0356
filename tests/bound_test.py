"""`bind_value_fn`: an optimizer that passes `value_fn` where its caller does not."""

from flax import linen as nn
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import bind_value_fn, egd

PARAMS = jnp.linspace(1.0, 2.0, 6)


def loss(params):
    return jnp.sum(jnp.sin(3 * params) ** 2 + params**2)


def other(params):
    return jnp.sum((params - 3.0) ** 2)


def evolving(**settings):
    return egd(0.01, momentum=0.9, evolve_every=2, sigma=0.2, **settings)


def trained(tx, steps=4, jit=True, **passed):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, **passed)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.wide
@pytest.mark.parametrize("jit", [True, False])
def test_bound_and_passed_give_the_same_bits(jit):
    bound = trained(bind_value_fn(evolving(), loss), jit=jit)
    assert_same(bound, trained(evolving(), jit=jit, value_fn=loss))
    assert int(bound[1].cycle) == 2


@pytest.mark.wide
def test_what_the_caller_passes_comes_first():
    bound = bind_value_fn(evolving(), loss, evolve=False)
    assert int(trained(bound)[1].cycle) == 0
    passed = trained(bound, value_fn=other, evolve=None)
    assert_same(passed, trained(evolving(), value_fn=other))
    assert not np.array_equal(passed[0], trained(evolving(), value_fn=loss)[0])


@pytest.mark.wide
def test_arguments_that_value_fn_names_are_bound_with_it():
    def scaled(params, factor):
        return loss(params) * factor

    one = trained(bind_value_fn(evolving(), scaled, factor=jnp.float32(2.0)))
    two = trained(bind_value_fn(evolving(), scaled, factor=jnp.float32(1.0)), factor=2.0)
    assert_same(one, two)


@pytest.mark.wide
def test_a_guard_is_bound_with_the_fitness():
    one = trained(bind_value_fn(evolving(), loss, accept_value_fn=other))
    assert_same(one, trained(evolving(), value_fn=loss, accept_value_fn=other))


@pytest.mark.wide
def test_the_wrapper_that_drops_value_fn_goes_inside_a_chain():
    def drops(tx):
        return optax.GradientTransformation(
            tx.init, lambda grads, state, params=None: tx.update(grads, state, params)
        )

    tx = optax.chain(drops(bind_value_fn(evolving(), loss)), optax.scale(1.0))
    assert_same(trained(tx)[0], trained(evolving(), value_fn=loss)[0])


def test_an_optimizer_without_value_fn_is_stepped_as_it_is():
    assert_same(trained(bind_value_fn(optax.sgd(0.1), loss)), trained(optax.sgd(0.1)))


def test_the_train_state_of_flax_that_drops_value_fn_is_told_what_to_do():
    model, x = nn.Dense(1), jnp.ones((4, 3))
    params = model.init(jax.random.key(0), x)["params"]
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=evolving())
    with pytest.raises(TypeError, match=r"`egd_optax\.flax\.TrainState`"):
        state.apply_gradients(grads=params)

    def fitness(params):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    bound = bind_value_fn(evolving(), fitness)
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=bound)
    for _ in range(2):
        state = state.apply_gradients(grads=jax.grad(fitness)(state.params))
    assert int(state.opt_state.cycle) == 1


def test_what_cannot_be_bound_is_named():
    with pytest.raises(TypeError, match="`tx` must be an optax.GradientTransformation, got .*sgd"):
        bind_value_fn(optax.sgd, loss)
    with pytest.raises(TypeError, match="`value_fn` must be a function of the parameters, got 3.0"):
        bind_value_fn(egd(0.1), 3.0)
