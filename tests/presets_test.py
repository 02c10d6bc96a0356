"""Every preset is a dictionary of arguments, and does what it is named for."""

import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import egd, evolve, is_due, noise, presets, sigma

STEPS = 40
PRESETS = {
    "safe": presets.safe(),
    "metric": presets.metric(evolve_every=5),
    "metric, decaying": presets.metric(STEPS, evolve_every=5),
    "metric, of a share": presets.metric(STEPS, share=0.5, window=(0.5, 1)),
    "finish": presets.finish(),
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
    settings = presets.metric(80, evolve_every=5, window=(0, 0.5))
    sizes = [float(settings["sigma"](cycle)) for cycle in range(8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 10
    assert settings["window"] == (0, 40)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.69])
@pytest.mark.parametrize("window", [(0, 1), (0, 0.5), (0.25, 0.75), (0.5, 1)])
@pytest.mark.parametrize(("population_size", "samples"), [(64, 0.5), (64, 1), (16, 4)])
def test_cycles_of_metric_take_their_share_of_the_compute(share, window, population_size, samples):
    steps = 4000
    settings = presets.metric(
        steps, share=share, window=window, samples=samples, population_size=population_size
    )
    every, bounds = settings["evolve_every"], settings["window"]
    due = [step for step in range(1, steps + 1) if is_due(step, every, bounds)]
    assert window[0] * steps < due[0] < due[-1] <= window[1] * steps

    def share_of(cycles):
        return 1 - 3 * steps / (3 * steps + cycles * population_size * samples)

    # Less than a cycle is lost or won at either end.
    assert share_of(len(due) - 1) < share <= share_of((len(due) + 2) * every / (every - 1))
    # The noise is at its end with the last cycle.
    assert settings["sigma"](0) == pytest.approx(0.12)
    assert settings["sigma"](len(due)) == pytest.approx(0.0012)
    assert settings["sigma"](len(due) - 1) > 0.0012


def test_a_longer_run_has_the_interval_and_the_shape_of_a_short_one():
    short, long = (presets.metric(steps, share=0.2) for steps in (1000, 10_000))
    assert short["evolve_every"] == long["evolve_every"]
    assert [10 * end for end in short["window"]] == [*long["window"]]


def test_the_interval_of_five_steps_stays_available():
    settings = presets.metric(2000, share=0.69, window=(0, 1), samples=0.5)
    assert (settings["evolve_every"], settings["window"]) == (5, None)
    assert presets.metric(share=0.69, samples=0.5)["evolve_every"] == 5


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"steps": 10.0}, TypeError, "`steps` must be a Python int, got 10.0"),
        ({"steps": 20}, ValueError, "`steps` must have a cycle in the window, got 20.*96 steps"),
        ({"share": 0}, ValueError, "`share` must be finite and above 0, got 0"),
        ({"share": 1.0}, ValueError, "`share` must be below 1, got 1.0"),
        ({"share": 0.9, "samples": 0.01}, ValueError, "`share` must be at most 0.096 here"),
        ({"share": "a tenth"}, TypeError, "`share` must be a real number"),
        ({"samples": 0}, ValueError, "`samples` must be finite and above 0, got 0"),
        ({"window": 0.5}, TypeError, "`window` must be a pair of fractions of the run, got 0.5"),
        ({"window": (0, 1000)}, ValueError, "`window` must be two rising fractions"),
        ({"window": (0.5, 0.5)}, ValueError, "`window` must be two rising fractions"),
        ({"window": (-0.1, 0.5)}, ValueError, "`window` must be finite and at least 0, got -0.1"),
        ({"evolve_every": 0}, ValueError, "`evolve_every` must be at least 1, got 0"),
        ({"evolve_every": 2.5}, TypeError, "`evolve_every` must be a Python int, got 2.5"),
    ],
    ids=str,
)
def test_what_a_share_needs(kwargs, error, message):
    with pytest.raises(error, match=message):
        presets.metric(**{"steps": 2000, **kwargs})
    if not {"steps", "window"} & kwargs.keys():
        with pytest.raises(error, match=message.replace("0.096", "0.18")):
            presets.metric(**kwargs)


@pytest.mark.parametrize("decide", [None, is_due])
def test_cycles_of_metric_run_in_their_window(decide):
    settings = presets.metric(STEPS, share=0.3, window=(0.25, 0.5), population_size=8)
    tx = evolve(optax.sgd(1e-3), **settings)
    every, window = settings["evolve_every"], settings["window"]
    params = jnp.linspace(-2.0, 2.0, 6)
    state, cycles = tx.init(params), []
    update = jax.jit(
        lambda state, params, due: tx.update(params, state, params, value_fn=steps, evolve=due),
        static_argnums=2,
    )
    for step in range(1, STEPS + 1):
        _, state = update(state, params, decide and decide(step, every, window))
        cycles.append(int(state.cycle))
    due = [is_due(step, every, window) for step in range(1, STEPS + 1)]
    assert cycles == [sum(due[: step + 1]) for step in range(STEPS)]
    assert cycles[9] == 0 < cycles[19] == cycles[-1]


def test_a_finish_goes_down_on_the_metric_from_where_gradients_ended():
    tx = evolve(optax.set_to_zero(), **presets.finish(generations=STEPS, sigma=0.3))
    params = jnp.linspace(-2.0, 2.0, 30).reshape(5, 6)

    @jax.jit
    def train(params, state):
        def step(_, carry):
            updates, state = tx.update(None, carry[1], carry[0], value_fn=steps)
            return optax.apply_updates(carry[0], updates), state

        return jax.lax.fori_loop(0, STEPS, step, (params, state))

    found, state = train(params, tx.init(params))
    assert steps(found) < 0.5 * steps(params)
    assert int(state.cycle) == STEPS
    assert 0.03 <= float(state.info.sigma) < 0.031


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"generations": 0}, ValueError, "`generations` must be at least 1, got 0"),
        ({"generations": 0.5}, TypeError, "`generations` must be a Python int, got 0.5"),
        ({"sigma": 0.0}, ValueError, "`sigma` must be finite and above 0, got 0.0"),
    ],
    ids=str,
)
def test_what_a_finish_needs(kwargs, error, message):
    with pytest.raises(error, match=message):
        presets.finish(**kwargs)


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
    tx = evolve(optax.adam(1e-2), **presets.metric(evolve_every=5, sigma=0.5))
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
    if cycles:
        with pytest.raises(ValueError, match=message):
            presets.metric(sigma=sigma)


def test_presets_hand_on_what_they_are_given():
    safe = presets.safe(evolve_every=3, population_size=4, sigma=0.5)
    assert (safe["evolve_every"], safe["population_size"], safe["sigma"]) == (3, 4, 0.5)
    metric = presets.metric(evolve_every=3, population_size=4, sigma=0.5, rank=2)
    assert (metric["evolve_every"], metric["population_size"], metric["sigma"]) == (3, 4, 0.5)
    assert metric["noise"] == noise.low_rank(rank=2)
    finish = presets.finish(population_size=4, sigma=0.5)
    assert (finish["population_size"], float(finish["sigma"](0))) == (4, 0.5)
    half = optax.sgd(0.5)
    search = presets.global_search(2.0, 5, population_size=4, generations=3, es_optimizer=half)
    assert (search["population_size"], search["generations"]) == (4, 3)
    assert search["es_optimizer"] is half
    assert search["noise"] == noise.gaussian(relative=False)
    assert float(search["sigma"](0)) == 2.0
    rule = sigma.path_length(2.0)
    assert presets.global_search(rule, 5)["sigma"] is rule
