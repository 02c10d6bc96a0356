"""Every preset is a dictionary of arguments, and does what it is named for."""

import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import egd, evolve, noise, presets, sigma

STEPS = 40
PRESETS = {
    "safe": presets.safe(),
    "metric": presets.metric(),
    "metric, decaying": presets.metric(cycles=STEPS // 5),
    "global_search": presets.global_search(sigma=1.5, cycles=STEPS),
    "global_search, adapting": presets.global_search(sigma.path_length(1.5), cycles=STEPS),
}


def bumpy(x):
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def steps(x):
    """Flat almost everywhere; lowest where every entry rounds to zero."""
    return jnp.mean(jnp.abs(jnp.round(x)))


def run(tx, loss, fitness, params, **extra):
    @jax.jit
    def train(params, state):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params, value_fn=fitness, **extra)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, STEPS, step, (params, state))

    return train(params, tx.init(params))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_arguments_of_both_optimizers(name):
    egd(0.1, **PRESETS[name])
    evolve(optax.adam(0.1), **{**PRESETS[name], "key": 3})


def test_the_noise_of_metric_decays_over_the_cycles():
    schedule = presets.metric(cycles=8)["sigma"]
    sizes = [float(schedule(cycle)) for cycle in range(8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 10
    with pytest.raises(ValueError, match="`cycles` must be finite and above 0, got 0"):
        presets.metric(cycles=0)


def test_each_call_returns_a_dictionary_of_its_own():
    presets.safe()["sigma"] = 9.0
    assert presets.safe()["sigma"] != 9.0


def test_safe_stands_where_the_guard_sees_no_gain():
    tx = evolve(optax.sgd(0.0), **{**presets.safe(), "evolve_every": 2, "sigma": 0.1})
    params = jnp.full(6, 0.7)
    worse, state = run(tx, bumpy, bumpy, params, accept_value_fn=lambda x: -bumpy(x))
    assert (worse == params).all()
    assert not bool(state.info.accepted)
    better, _ = run(tx, bumpy, bumpy, params, accept_value_fn=bumpy)
    assert bumpy(better) < bumpy(params)


def test_metric_goes_down_where_the_gradient_is_zero():
    tx = evolve(optax.adam(1e-2), **{**presets.metric(), "sigma": 0.5})
    params = jnp.linspace(-2.0, 2.0, 30).reshape(5, 6)
    assert not jax.grad(steps)(params).any()
    found, _ = run(tx, steps, steps, params)
    assert steps(found) < 0.5 * steps(params)


@pytest.mark.parametrize("name", ["global_search", "global_search, adapting"])
def test_global_search_leaves_the_basin_that_gradients_end_in(name):
    params = jnp.full(5, 3.0)
    stuck, _ = run(optax.with_extra_args_support(optax.sgd(1e-3)), bumpy, bumpy, params)
    found, state = run(evolve(optax.sgd(1e-3), **PRESETS[name]), bumpy, bumpy, params)
    assert bumpy(found) < 0.1 * bumpy(stuck)
    assert float(state.info.sigma) < 1.5e-2 * 1.5  # from far to near


@pytest.mark.parametrize(
    ("sigma", "cycles", "message"),
    [
        (0.0, 10, "`sigma` must be finite and above 0, got 0.0"),
        (float("nan"), 10, "`sigma` must be finite and above 0, got nan"),
        (1.0, 0, "`cycles` must be finite and above 0, got 0"),
    ],
)
def test_what_presets_that_decay_need(sigma, cycles, message):
    with pytest.raises(ValueError, match=message):
        presets.global_search(sigma, cycles)
    with pytest.raises(ValueError, match=message):
        presets.metric(cycles, sigma=sigma)


def test_presets_hand_on_what_they_are_given():
    safe = presets.safe(evolve_every=3, population_size=4, sigma=0.5)
    assert (safe["evolve_every"], safe["population_size"], safe["sigma"]) == (3, 4, 0.5)
    metric = presets.metric(evolve_every=3, population_size=4, sigma=0.5, rank=2)
    assert (metric["evolve_every"], metric["population_size"], metric["sigma"]) == (3, 4, 0.5)
    assert metric["noise"] == noise.low_rank(rank=2)
    half = optax.sgd(0.5)
    search = presets.global_search(2.0, 5, population_size=4, generations=3, es_optimizer=half)
    assert (search["population_size"], search["generations"]) == (4, 3)
    assert search["es_optimizer"] is half
    assert search["noise"] == noise.gaussian(relative=False)
    assert float(search["sigma"](0)) == 2.0
    rule = sigma.path_length(2.0)
    assert presets.global_search(rule, 5)["sigma"] is rule
