"""`noise.separable`: a standard deviation for every parameter, against NumPy."""

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, evolve, noise, recombine

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}
SIGMA = 0.2


def utilities(fitness):
    rank = jnp.argsort(jnp.argsort(fitness)) + 1
    gain = jnp.maximum(jnp.log(fitness.size / 2 + 1) - jnp.log(rank), 0)
    return gain / jnp.sum(gain) - 1 / fitness.size


RULES = {
    "utilities": recombine.member_weights(utilities),
    "ranks": recombine.centered_rank(),
    "best": recombine.mean(0.5),
}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def recorded_run(rule, antithetic, generations=6, **settings):
    """The parent, the members, their fitness, and the state before and after each generation."""
    members, scores = [], []

    def note(member, value):
        members.append(flat(member))
        scores.append(float(value))

    def value_fn(params):
        squares = jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf - 0.4) ** 2), params)
        value = 10 * squares["w"] + squares["b"]
        io_callback(note, None, params, value)
        return value

    tx = evolve(
        optax.set_to_zero(), evolve_every=1, population_size=8, antithetic=antithetic, sigma=SIGMA,
        recombine=RULES[rule], accept=accept.always(), **settings,
    )  # fmt: skip

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(generations):
        members.clear()
        scores.clear()
        parent, before = flat(params), state.strategy_state.noise
        params, state = jax.block_until_ready(step(params, state))
        jax.effects_barrier()
        yield (
            parent,
            np.stack(members),
            np.array(scores),
            before,
            state.strategy_state.noise,
            params,
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("learning_rate", [None, 0.5])
def test_it_adapts_as_numpy_does(rule, antithetic, learning_rate):
    kind, count = noise.separable(learning_rate), 15
    rate = learning_rate or (3 + np.log(count)) / (5 * np.sqrt(count))
    spread = []
    for parent, members, scores, before, after, params in recorded_run(
        rule, antithetic, noise=kind
    ):
        std = SIGMA * np.exp(flat(before.log_std))
        z = (members - parent) / std
        weights = np.asarray(
            RULES[rule].weights(jnp.asarray(scores), RULES[rule].support(8) or scores.size)
        )
        np.testing.assert_allclose(
            flat(after.log_std),
            flat(before.log_std) + rate / 2 * (weights @ (z**2 - 1)),
            atol=1e-4,
        )
        np.testing.assert_allclose(flat(params), parent + std * (weights @ z), atol=1e-5)
        spread.append(np.ptp(flat(after.log_std)))
    assert spread[-1] > 0.05


def test_it_starts_as_gaussian_noise_does():
    runs = [
        next(recorded_run("ranks", True, noise=kind))[1]
        for kind in (noise.separable(), noise.gaussian(relative=False))
    ]
    np.testing.assert_allclose(*runs, rtol=1e-6)


def test_a_relative_one_starts_with_the_scale_of_each_leaf():
    runs = [
        next(recorded_run("ranks", True, noise=kind))[1]
        for kind in (noise.separable(relative=True), noise.gaussian())
    ]
    np.testing.assert_allclose(*runs, rtol=1e-6)


def test_complex_leaves_have_real_deviations():
    params = {"z": jnp.ones(4, jnp.complex64), "r": jnp.ones(3)}
    value_fn = lambda p: jnp.sum(jnp.abs(p["z"] - 1j) ** 2) + jnp.sum(p["r"] ** 2)  # noqa: E731
    tx = evolve(optax.set_to_zero(), evolve_every=1, sigma=0.3, noise=noise.separable())
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=value_fn))
    updates, after = step(params, state)
    assert after.strategy_state.noise.log_std["z"].dtype == jnp.float32
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jnp.isfinite(after.strategy_state.noise.log_std["z"]).all()
    assert updates["z"].dtype == jnp.complex64


def test_only_mutating_leaves_have_a_state():
    tx = evolve(
        optax.set_to_zero(),
        evolve_every=1,
        noise=noise.separable(),
        mutable={"w": True, "b": False},
    )
    log_std = tx.init(PARAMS).strategy_state.noise.log_std
    assert isinstance(log_std["b"], optax.MaskedNode)
    assert log_std["w"].shape == (4, 3)


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, jnp.nan])
def test_a_learning_rate_that_is_none_is_refused(learning_rate):
    with pytest.raises((ValueError, TypeError), match="`learning_rate` must be"):
        noise.separable(float(learning_rate))
