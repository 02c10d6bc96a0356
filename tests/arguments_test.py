"""`value_fn` gets the arguments of `update` that it takes, whatever kind of callable it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import evolve

PARAMS = jnp.ones(3)


def parent_fitness(value_fn, **extra):
    """What the parent scores: 3 for these parameters, times 100 if the scale arrives."""
    tx = evolve(optax.sgd(0.0), evolve_every=1)
    step = lambda state: tx.update(PARAMS, state, PARAMS, value_fn=value_fn, **extra)  # noqa: E731
    eager, compiled = (go(tx.init(PARAMS))[1].info for go in (step, jax.jit(step)))
    np.testing.assert_allclose(eager.parent_fitness, compiled.parent_fitness, rtol=1e-6)
    return float(eager.parent_fitness)


def takes_any(params, **kwargs):
    assert kwargs.keys() <= {"scale", "batch"}, "what the library adds comes only by name"
    return jnp.sum(params**2) * kwargs.get("scale", 1.0)


def takes_scale(params, batch=None, *, scale=1.0):
    return jnp.sum(params**2) * scale


def decorated_without_a_name(fn):
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


class Model:
    def method(self, params, scale=1.0):
        return takes_scale(params, scale=scale)

    @staticmethod
    def static_method(params, scale=1.0):
        return takes_scale(params, scale=scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A pytree that is called, as a module of a neural network is."""

    weight: jax.Array

    def __call__(self, params, scale=1.0):
        return self.weight * takes_scale(params, scale=scale)


CALLABLES = {
    "any": takes_any,
    "named": takes_scale,
    "partial": functools.partial(takes_scale, batch=jnp.ones(2)),
    "partial by position": functools.partial(
        lambda a, params, scale: a * scale * jnp.sum(params), 1.0
    ),
    "bound method": Model().method,
    "static method": Model.static_method,
    "module": Module(jnp.ones([])),
    "decorated": decorated_without_a_name(takes_scale),
    "wrapped": functools.wraps(takes_scale)(lambda *args, **kwargs: takes_scale(*args, **kwargs)),
    "jitted": jax.jit(takes_scale),
    "named by position": lambda params, scale, /, **kwargs: takes_scale(params, **kwargs),
}


@pytest.mark.crossed(1)
@pytest.mark.parametrize("kind", sorted(CALLABLES.keys() - {"named by position"}))
def test_every_kind_of_callable_gets_what_it_takes(kind):
    np.testing.assert_allclose(parent_fitness(CALLABLES[kind], scale=100.0), 300.0, rtol=1e-6)


def test_what_can_only_come_by_position_is_missing_by_name():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'scale'"):
        parent_fitness(CALLABLES["named by position"], scale=100.0)


@pytest.mark.wide
def test_an_argument_that_others_take_is_passed_over():
    np.testing.assert_allclose(parent_fitness(takes_scale, value=2.0, unrelated="text"), 3.0)


def test_a_function_of_any_arguments_gets_all_of_update():
    def value_fn(params, generation, base_state, **kwargs):
        assert kwargs.keys() == {"scale", "batch"}
        assert isinstance(base_state, tuple)
        return takes_scale(params, **kwargs) + generation

    np.testing.assert_allclose(parent_fitness(value_fn, scale=100.0, batch=jnp.ones(2)), 300.0)


@pytest.mark.parametrize("name", ["value_fn", "accept_value_fn", "base_value_fn"])
@pytest.mark.parametrize(("wrong", "meant"), [("bacth", "batch"), ("scal", "scale")])
def test_an_argument_of_a_function_that_is_misspelt_is_an_error(name, wrong, meant):
    tx = evolve(optax.sgd(0.1))
    given = {"value_fn": jnp.sum, name: takes_scale, wrong: 1.0}
    with pytest.raises(TypeError, match=f"`{wrong}` must be .*did you mean `{meant}`"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **given)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("acept_value_fn", "accept_value_fn"), ("base_valuefn", "base_value_fn"), ("evolv", "evolve")],
)
def test_an_argument_of_update_that_is_misspelt_is_an_error(wrong, meant):
    tx = evolve(optax.sgd(0.1))
    with pytest.raises(TypeError, match=f"`{wrong}` must be .*did you mean `{meant}`"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=jnp.sum, **{wrong: takes_scale})


@pytest.mark.parametrize(
    ("takes", "given"),
    [
        (takes_scale, {"value": 1.0}),  # of another transformation in a chain
        (takes_scale, {"batch": 1, "batches": 2}),
        (takes_any, {"bacth": 1}),  # who can tell
    ],
)
def test_what_may_be_meant_for_others_is_no_error(takes, given):
    tx = evolve(optax.sgd(0.1))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=takes, evolve=False, **given)
