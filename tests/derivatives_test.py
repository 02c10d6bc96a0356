"""A step is differentiable: what no cycle touches is what the base makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, egd, evolve

START = jnp.array([1.0, -0.5, 2.0])


def loss(params):
    return jnp.sum((params - 2.0) ** 2 * jnp.arange(1.0, 4.0))


def after(make, rate, steps=3, **kwargs):
    """The loss after some steps, to be differentiated in the learning rate."""
    tx, params = make(rate), START
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(params), state, params, **kwargs)
        params = optax.apply_updates(params, updates)
    return loss(params)


BASES = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}
MODES = {
    "reverse": jax.grad,
    "forward": lambda fn: lambda at: jax.jvp(fn, (at,), (1.0,))[1],
    "forward, jitted": lambda fn: jax.jacfwd(jax.jit(fn)),
    "jitted": lambda fn: jax.jit(jax.grad(fn)),
    "second": lambda fn: jax.grad(jax.grad(fn)),
    "rematerialised": lambda fn: jax.grad(jax.checkpoint(fn)),
}


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    ("base", "mode", "reset_base", "evolve_now"),
    [
        *(("sgd", mode, True, None) for mode in MODES),
        *(("adam", mode, True, None) for mode in ("reverse", "jitted")),
        ("sgd", "jitted", False, None),
        ("adam", "jitted", False, False),
    ],
)
def test_through_steps_without_a_cycle_derivatives_are_those_of_the_base(
    base, mode, reset_base, evolve_now
):
    differentiated = MODES[mode]
    alone = optax.with_extra_args_support
    expected = differentiated(lambda rate: after(lambda rate: alone(BASES[base](rate)), rate))(0.1)
    around = lambda rate: evolve(BASES[base](rate), reset_base=reset_base)  # noqa: E731
    found = differentiated(lambda rate: after(around, rate, value_fn=loss, evolve=evolve_now))(0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.wide
@pytest.mark.parametrize("reset_base", [False, True])
@pytest.mark.parametrize("mode", ["reverse", "forward", "forward, jitted", "jitted"])
def test_what_a_cycle_chose_is_a_constant(mode, reset_base):
    kwargs = {"evolve_every": 3, "sigma": 0.5, "accept": accept.always(), "reset_base": reset_base}

    def derivative(steps):
        return MODES[mode](
            lambda rate: after(
                lambda rate: egd(rate, momentum=0.9, **kwargs), rate, steps, value_fn=loss
            )
        )(0.1)

    # Parameters that a cycle chose do not depend on the rate; a step from there does.
    np.testing.assert_array_equal(derivative(3), 0.0)
    assert np.isfinite(derivative(4))
    assert derivative(4) != 0


def test_what_value_fn_closes_over_may_be_differentiated():
    def run(scale, rate):
        tx = egd(rate, evolve_every=2, sigma=scale)
        return after(lambda _: tx, rate, 2, value_fn=lambda p: scale * loss(p))

    assert all(np.isfinite(one) for one in jax.grad(run, argnums=(0, 1))(0.3, 0.1))


def test_a_scan_of_steps_is_differentiated():
    def run(rate, tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
            return (params + updates, state), None

        (params, _), _ = jax.lax.scan(step, (START, tx.init(START)), length=3)
        return loss(params)

    found = jax.grad(lambda rate: run(rate, egd(rate)))(0.05)
    expected = jax.grad(lambda rate: run(rate, optax.with_extra_args_support(optax.sgd(rate))))(
        0.05
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
