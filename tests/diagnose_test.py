"""`diagnose`: against NumPy, on the members of a cycle, and where there is nothing to tell."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import fitness_of, observed_by, record_evaluations, toy_params

from egd_optax import accept, evolve, noise, recombine
from egd_optax.diagnose import diagnose

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 24).reshape(4, 6), "b": jnp.linspace(0.1, 1.0, 6)}


def leaves_of(params):
    return jax.tree.leaves(params)


def linear(params):
    """A fitness that its gradient tells all of."""
    return sum(jnp.sum(jnp.real(leaf).astype(jnp.float32)) for leaf in leaves_of(params))


def seen_by_diagnose(params, grads, **kwargs):
    """What is evaluated, and what comes of it."""
    seen = []

    def score(params):
        seen.append(jax.tree.map(np.array, params))
        return np.float32(fitness_of(seen[-1]))

    found = jax.block_until_ready(diagnose(observed_by(score), params, grads, **kwargs))
    return seen, found


@pytest.mark.crossed(1)
@pytest.mark.parametrize("kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low rank"])
def test_numpy_finds_the_same(kind):
    params = toy_params()
    grads = jax.grad(lambda p: jnp.sin(5 * fitness_of(p)))(params)
    seen, found = seen_by_diagnose(params, grads, pairs=12, sigma=0.3, noise=kind)
    assert len(seen) == 24
    ahead, behind = seen[::2], seen[1::2]
    differences = [(fitness_of(a) - fitness_of(b)) / 2 for a, b in zip(ahead, behind, strict=True)]
    slopes = [
        sum(
            np.vdot(grad, (a - b) / 2)
            for grad, a, b in zip(*map(leaves_of, (grads, one, other)), strict=True)
        )
        for one, other in zip(ahead, behind, strict=True)
    ]
    expected = np.dot(differences, slopes) / (np.linalg.norm(differences) * np.linalg.norm(slopes))
    np.testing.assert_allclose(found.gradient_correlation, expected, rtol=1e-3, atol=1e-4)
    assert np.isnan(found.reliability)


def test_the_pairs_are_those_of_the_first_cycle():
    params = toy_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    seen, _ = seen_by_diagnose(params, zeros, pairs=3, sigma=0.1, key=4)
    # The step of `record_evaluations` moves the parameters, and its members are around these.
    of_cycle, parent, *_ = record_evaluations(
        population_size=6, antithetic=True, sigma=0.1, key=4, accept=accept.always()
    )
    moved, _ = seen_by_diagnose(jax.tree.map(jnp.asarray, parent), zeros, pairs=3, sigma=0.1, key=4)
    chex.assert_trees_all_close(moved, of_cycle, rtol=1e-5, atol=1e-6)
    assert len(seen) == 6


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS),
        {**PARAMS, "w": (1 + 2j) * PARAMS["w"]},
        {**PARAMS, "index": jnp.arange(3)},
    ],
    ids=["float32", "bfloat16", "complex", "with integers"],
)
def test_a_linear_fitness_is_all_that_its_gradient_says(params):
    grads = jax.grad(linear, allow_int=True)(params)
    found = jax.jit(lambda p, g: diagnose(linear, p, g, sigma=0.1))(params, grads)
    np.testing.assert_allclose(found.gradient_correlation, 1, atol=1e-2)
    against = diagnose(lambda p: -linear(p), params, grads, sigma=0.1)
    np.testing.assert_allclose(against.gradient_correlation, -1, atol=1e-2)


def test_what_repeats_is_told_from_luck():
    grads = jax.grad(linear)(PARAMS)

    def luck(seed):
        directions = jax.random.normal(jax.random.key(seed), PARAMS["w"].shape)
        return lambda params: jnp.sum(directions * params["w"])

    same = diagnose(linear, PARAMS, grads, other_value_fn=lambda p: 3 * linear(p) - 1)
    np.testing.assert_allclose(same.reliability, 1, atol=1e-4)
    other = diagnose(luck(0), PARAMS, grads, other_value_fn=luck(1), pairs=200)
    assert abs(other.reliability) < 0.4  # of 24 entries


def child_of(members, parent, weights):
    """The parent and the weighted deviations of its members, in NumPy."""
    terms = [jax.tree.map(lambda x, p, w=w: w * (x - p), member, parent)
             for w, member in zip(weights, members, strict=True)]  # fmt: skip
    return jax.tree.map(lambda leaf, *by: leaf + sum(by), parent, *terms)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low rank"])
def test_what_the_child_gains_is_judged_on_the_other_samples(kind):
    params = toy_params()
    grads = jax.tree.map(jnp.zeros_like, params)
    judged = []

    def judge(params):
        judged.append(jax.tree.map(np.array, params))
        return np.float32(np.sin(3 * fitness_of(judged[-1])))

    members, found = seen_by_diagnose(
        params, grads, other_value_fn=observed_by(judge), pairs=6, sigma=0.3, noise=kind
    )
    parent = jax.tree.map(np.array, params)
    rule = recombine.centered_rank()

    def gains(members):
        fitness = jnp.array([fitness_of(member) for member in members], jnp.float32)
        for ranks in (rule, recombine.shuffled(rule)):
            child = child_of(members, parent, np.asarray(ranks.weights(fitness, 12)))
            yield np.sin(3 * fitness_of(parent)) - np.sin(3 * fitness_of(child))

    # XLA may evaluate the two of each pair in either order, which changes the order by chance.
    swapped = [member for pair in zip(members[1::2], members[::2], strict=True) for member in pair]
    expected = np.array([[*gains(members)], [*gains(swapped)]])
    actual = np.array([found.gain, found.gain_of_random_ranks])
    assert np.isclose(actual, expected, rtol=1e-3, atol=1e-4).all(axis=1).any()
    # Two of each pair, and parent and child twice; nothing is judged without other samples.
    assert len(judged) == len(members) + 4
    alone = seen_by_diagnose(params, grads, pairs=2)[1]
    assert np.isnan([alone.gain, alone.gain_of_random_ranks]).all()


def test_selection_adds_to_jumping_only_if_the_ranks_repeat():
    def gains(value_fn, other_value_fn):
        def one(key):
            found = diagnose(
                value_fn, PARAMS, PARAMS, other_value_fn=other_value_fn, sigma=0.1, key=key
            )
            return found.gain, found.gain_of_random_ranks

        keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), 40))
        return (np.mean(gain) for gain in jax.lax.map(one, keys))

    selected, random = gains(linear, linear)
    assert selected > 10 * abs(random)
    selected, random = gains(lambda params: jnp.sin(1e5 * linear(params)), linear)
    assert abs(selected) < 0.2 * next(gains(linear, linear))
    # Noise does harm at a minimum, selection or not.
    selected, random = gains(linear, lambda params: jnp.sum((params["w"] - PARAMS["w"]) ** 2))
    assert selected < 0
    assert random < 0


def test_a_leaf_without_a_gradient_does_not_mutate_and_extra_arguments_are_those_of_an_optimizer():
    def value_fn(params, scale):
        return scale * jnp.sum(params["w"]) + jnp.sum(params["b"])

    grads = {"w": jnp.zeros((4, 6)), "b": jnp.ones(6)}
    args = {"scale": jnp.float32(100.0), "unused": 3}
    assert diagnose(value_fn, PARAMS, grads, **args).gradient_correlation < 0.5
    found = diagnose(value_fn, PARAMS, {"w": None, "b": grads["b"]}, **args)
    np.testing.assert_allclose(found.gradient_correlation, 1, atol=1e-4)


def test_pairs_without_finite_fitness_are_left_out_and_nothing_is_told_of_none():
    grads = jax.grad(linear)(PARAMS)

    def half(params):
        value = linear(params)
        return jnp.where(params["w"][0, 0] > PARAMS["w"][0, 0] + 0.05, jnp.nan, value)

    found = diagnose(half, PARAMS, grads, sigma=0.1)
    np.testing.assert_allclose(found.gradient_correlation, 1, atol=1e-3)
    for silent in (lambda p: 0 * linear(p), lambda p: jnp.nan * linear(p)):
        found = diagnose(silent, PARAMS, grads, other_value_fn=silent)
        assert np.isnan(found.gradient_correlation)
        assert np.isnan(found.reliability)


def test_small_numbers_are_not_lost():
    grads = jax.tree.map(lambda leaf: 1e-25 * leaf, jax.grad(linear)(PARAMS))
    found = diagnose(lambda p: 1e-25 * linear(p), PARAMS, grads)
    np.testing.assert_allclose(found.gradient_correlation, 1, atol=1e-3)


def test_it_runs_inside_of_a_jitted_step():
    tx = evolve(optax.sgd(0.1), evolve_every=2)

    @jax.jit
    def step(params, state):
        grads = jax.grad(linear)(params)
        found = diagnose(linear, params, grads, key=state.key_data)
        updates, state = tx.update(grads, state, params, value_fn=linear)
        return optax.apply_updates(params, updates), state, found

    _, _, found = step(PARAMS, tx.init(PARAMS))
    np.testing.assert_allclose(found.gradient_correlation, 1, atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"pairs": 0}, ValueError, "`pairs` must be at least 1, got 0"),
        ({"value_fn": 3.0}, TypeError, "`value_fn` must be a function of the parameters, got 3.0"),
        ({"other_value_fn": 1}, TypeError, "`other_value_fn` must be a function of the parameters"),
        ({"noise": "gaussian"}, TypeError, "`noise` must be an operator, got 'gaussian'"),
        ({"sigma": -1.0}, ValueError, "`sigma` must be finite and at least 0, got -1.0"),
        ({"grads": {"w": None, "b": None}}, ValueError, "`grads` must have a gradient of a leaf"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    arguments = {"value_fn": linear, "params": PARAMS, "grads": PARAMS, **kwargs}
    with pytest.raises(error, match=message):
        diagnose(**arguments)
