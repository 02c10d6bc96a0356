"""Diffrax: the constants of a differential equation, fitted to its solution."""

import diffrax
import jax
import jax.numpy as jnp
import optax

from egd_optax import evolve

TIMES = jnp.linspace(0.0, 4.0, 20)
TRUE = {"damping": jnp.float32(0.3), "stiffness": jnp.float32(2.0)}
START = {"damping": jnp.float32(0.1), "stiffness": jnp.float32(1.0)}
TX = evolve(optax.adam(0.02), evolve_every=10, sigma=0.1)


def force(t, y, args):
    position, speed = y
    return speed, -args["stiffness"] * position - args["damping"] * speed


def path(params):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(force),
        diffrax.Tsit5(),
        t0=0.0,
        t1=4.0,
        dt0=0.1,
        y0=(jnp.float32(1.0), jnp.float32(0.0)),
        args=params,
        saveat=diffrax.SaveAt(ts=TIMES),
    )
    return solution.ys[0]


OBSERVED = path(TRUE)


def loss(params):
    return jnp.mean((path(params) - OBSERVED) ** 2)


@jax.jit
def step(params, state):
    updates, state = TX.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state


def test_an_equation_is_fitted():
    params, state = START, TX.init(START)
    for _ in range(60):
        params, state = step(params, state)
    assert int(state.cycle) == 6
    assert loss(params) < 0.1 * loss(START)
