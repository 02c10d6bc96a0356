"""What a function can depend on is read off its program, through calls, branches and loops."""

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from egd_optax.base.dependence import depends_on

X, Y = jnp.ones(3), jnp.arange(3.0)


def looped(x, y):
    return lax.fori_loop(0, 3, lambda _, carry: (carry[1], carry[1] * 2), (y, x))


FUNCTIONS = {
    "operations": (lambda x, y: (x + y, y * 2, jnp.zeros_like(x)), (True, False, False)),
    "calls": (jax.jit(lambda x, y: (jnp.sin(y), jnp.sin(x))), (False, True)),
    "derivatives": (lambda x, y: (jax.nn.relu(x), jax.nn.relu(y)), (True, False)),
    "rematerialised": (
        jax.checkpoint(lambda x, y: (jnp.sin(x), jnp.sin(y))),
        (True, False),
    ),
    "a branch within": (
        lambda x, y: lax.cond(y[0] > 0, lambda: (x, y), lambda: (y, 2 * y)),
        (True, False),
    ),
    "a branch that it chooses": (
        lambda x, y: lax.cond(
            x[0] > 0, lambda: (y, jnp.zeros(3)), lambda: (2 * y, jnp.zeros_like(y))
        ),
        (True, False),
    ),
    "a choice": (
        lambda x, y: (
            jnp.where(x > 0, jnp.zeros_like(y), jnp.zeros_like(x)),
            jnp.where(y > 0, x, y),
            jnp.where(y > 0, y, 0.0),
        ),
        (False, True, False),
    ),
    "a loop": (looped, (True, True)),
    "a loop over others": (
        lambda x, y: (x, lax.scan(lambda carry, at: (carry + at, carry), 0.0, y)[1]),
        (True, False),
    ),
    "constants": (lambda x, y: (jnp.array([1.0, 2.0]), 3.0), (False, False)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dependence(name):
    fn, expected = FUNCTIONS[name]
    assert depends_on(fn, X, Y) == expected
    assert depends_on(jax.jit(fn), X, Y) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_depends_on_nothing_does_not_change(name):
    fn, _ = FUNCTIONS[name]
    changed = jax.tree.map(
        lambda one, other: bool(jnp.any(jnp.asarray(one) != other)), fn(X, Y), fn(-3 * X, Y)
    )
    for may, does in zip(depends_on(fn, X, Y), changed, strict=True):
        assert may or not does


def test_trees_and_gaps():
    found = depends_on(lambda x, y: {"a": x["in"], "b": None, "c": [y]}, {"in": X, "none": None}, Y)
    assert found == {"a": True, "b": None, "c": [False]}
