"""Sigma that adapts: by success, by the length of the path, and by a rule from outside."""

import dataclasses

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, egd, evolve, noise, recombine, sigma

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3)}
RULES = {"ranks": recombine.centered_rank(), "best": recombine.mean(0.5)}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def loss(params):
    return sum(jnp.sum((leaf - 0.4) ** 2) for leaf in jax.tree.leaves(params))


def run(tx, steps, value_fn=loss, wrap=jax.jit):
    """The parameters and the state before each step, and behind the last one."""

    @wrap
    def step(params, state):
        updates, state = tx.update(params, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    now = PARAMS, tx.init(PARAMS)
    yield now
    for _ in range(steps):
        now = jax.block_until_ready(step(*now))
        yield now


def strategy(**settings):
    return evolve(
        optax.set_to_zero(), evolve_every=1, noise=noise.gaussian(relative=False),
        **{"population_size": 8, "accept": accept.always(), **settings},
    )  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_path_is_that_of_numpy(rule, antithetic):
    members, scores = [], []

    def note(member, value):
        members.append(flat(member))
        scores.append(float(value))

    def value_fn(params):
        value = loss(params)
        io_callback(note, None, params, value)
        return value

    tx = strategy(sigma=sigma.path_length(0.3), antithetic=antithetic, recombine=RULES[rule])
    size, path, width, widths = 15, np.zeros(15), 0.3, []
    states = run(tx, 8, value_fn)
    params, _ = next(states)
    for after, state in states:
        jax.effects_barrier()
        fitness = np.array(scores)
        weights = np.asarray(
            RULES[rule].weights(jnp.asarray(fitness), RULES[rule].support(8) or fitness.size)
        ).astype(np.float64)
        draws = weights[::2] - weights[1::2] if antithetic else weights[1:]
        z = (np.stack(members)[:: 2 if antithetic else 1] - flat(params)) / width
        total = draws @ (z if antithetic else z[1:])
        np.testing.assert_allclose(state.info.sigma, width, rtol=1e-4)
        np.testing.assert_allclose(flat(after), flat(params) + width * total, atol=1e-4)
        squares = np.sum(draws**2)
        effective = np.sum(np.abs(draws)) ** 2 / squares
        if antithetic:  # what they would be on average, if the members were shuffled
            squares = 8 / 7 * np.sum((weights - weights.mean()) ** 2)
            effective = np.sum(np.abs(weights)) ** 2 / np.sum(weights**2) / 2
        rate = (effective + 2) / (size + effective + 5)
        damping = 1 + 2 * max(0, np.sqrt(max(effective - 1, 0) / (size + 1)) - 1) + rate
        path = (1 - rate) * path + np.sqrt(rate * (2 - rate) / squares) * total
        of_random = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
        width *= np.exp(rate / damping * (np.linalg.norm(path) / of_random - 1))
        found = state.strategy_state.of_sigma
        np.testing.assert_allclose(flat(found.path), path, atol=2e-4)
        np.testing.assert_allclose(0.3 * np.exp(found.log_factor), width, rtol=1e-4)
        members.clear()
        scores.clear()
        params, widths = after, [*widths, width]
    assert np.ptp(np.log(widths)) > 0.02


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_random_selection_leaves_sigma_where_it_is(rule, antithetic):
    """The loss knows nothing of the parameters: sigma walks, without a drift."""

    def logarithm(key):
        tx = strategy(
            sigma=sigma.path_length(0.3), recombine=RULES[rule], antithetic=antithetic, key=key
        )
        noisy = lambda params, generation: jnp.sin(1e4 * loss(params))  # noqa: E731

        def step(carry, _):
            params, state = carry
            _, state = tx.update(params, state, params, value_fn=noisy)
            return (params, state), state.strategy_state.of_sigma.log_factor

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=40)[1][-1]

    ends = jax.jit(lambda keys: jax.lax.map(logarithm, keys))(
        jax.random.split(jax.random.key(1), 32)
    )
    assert abs(ends.mean()) < 3 * ends.std() / 32**0.5 + 0.1
    assert ends.std() > 0.05


@pytest.mark.parametrize("population_size", [8, 64])
def test_a_sigma_of_pairs_that_is_far_too_large_shrinks(population_size):
    """Both members of a pair are then far away, and nearly equally bad."""
    tx = strategy(
        sigma=sigma.path_length(1e3), population_size=population_size, antithetic=True,
        recombine=RULES["ranks"], es_optimizer=optax.sgd(0.15),
    )  # fmt: skip
    params, state = list(run(tx, 150))[-1]
    assert state.info.sigma < 100
    assert loss(params) < 1e4


def test_a_long_way_and_a_near_optimum_change_sigma_as_they_should():
    slope = lambda params: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))  # noqa: E731
    tx = strategy(sigma=sigma.path_length(0.01), recombine=RULES["best"], antithetic=True)
    *_, (_, far) = run(tx, 30, slope)
    assert far.info.sigma > 0.02
    tx = strategy(sigma=sigma.path_length(1.0), recombine=RULES["best"], antithetic=True)
    *_, (_, near) = run(tx, 60)
    assert near.info.sigma < 0.5


@pytest.mark.parametrize("rule", [accept.improved(), accept.best()])
def test_one_success_in_five_keeps_sigma(rule):
    tx = strategy(sigma=sigma.one_fifth(0.3, growth=2.0), accept=rule)
    expected, successes = 0.3, 0
    for _, state in list(run(tx, 20))[1:]:
        np.testing.assert_allclose(state.info.sigma, expected, rtol=1e-4)
        success = bool(state.info.child_fitness < state.info.parent_fitness)
        expected *= 2.0 if success else 2.0**-0.25
        successes += success
    assert 0 < successes < 20


def test_a_schedule_multiplies_what_was_learned():
    start = optax.linear_schedule(0.4, 0.1, 3)
    alone = [state.info.sigma for _, state in list(run(strategy(sigma=start), 5))[1:]]
    np.testing.assert_allclose(alone, [start(cycle) for cycle in range(5)], rtol=1e-6)
    kept = dataclasses.make_dataclass(
        "Kept", [("start", object)], bases=(sigma.Sigma,), frozen=True
    )
    kept.init = lambda self, params: jnp.float32(0)
    kept.factor = lambda self, state: 2.0**state
    kept.adapt = lambda self, state, outcome: state + 1
    grown = [state.info.sigma for _, state in list(run(strategy(sigma=kept(start)), 5))[1:]]
    np.testing.assert_allclose(grown, [2**at * alone[at] for at in range(5)], rtol=1e-6)


def test_a_generation_without_a_finite_member_teaches_nothing():
    nowhere = lambda params: jnp.inf * loss(params)  # noqa: E731
    *_, (_, state) = run(strategy(sigma=sigma.path_length(0.3)), 3, nowhere)
    assert state.strategy_state.of_sigma.log_factor == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state.strategy_state.of_sigma.path))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: sigma.one_fifth(-1.0), "`start` must be finite and at least 0"),
        (lambda: sigma.path_length(jnp.nan), "`start` must be finite and at least 0"),
        (lambda: sigma.one_fifth(0.1, growth=1.0), "`growth` must be above 1"),
        (
            lambda: strategy(sigma=sigma.one_fifth(0.1)),
            "`sigma` must be a rule that needs no fitness of the child",
        ),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_both_optimizers_take_it():
    for tx in (egd(0.1, sigma=sigma.path_length(0.1)), strategy(sigma=sigma.path_length(0.1))):
        assert tx.init(PARAMS).strategy_state.of_sigma.path["b"].shape == (3,)


def test_the_state_of_another_sigma_is_refused_by_name():
    state = strategy(sigma=0.1).init(PARAMS)
    with pytest.raises(ValueError, match="`state.strategy_state.noise` must be that of"):
        strategy(sigma=sigma.path_length(0.1)).update(PARAMS, state, PARAMS, value_fn=loss)
