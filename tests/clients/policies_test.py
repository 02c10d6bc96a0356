"""The policies of the quality benchmark, which need Gymnax and evosax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality.methods import POLICIES, ppo
from benchmarks.quality.methods.method import Trainer, split, streams
from benchmarks.quality.problems import POLICIES as PROBLEMS
from benchmarks.quality.problems import layers
from benchmarks.quality.problems.policies import TASKS, play
from benchmarks.quality.runner import draws
from xla_options import known

# What an episode costs in which nothing is done, or the first of some actions at every step.
# Hanging still costs pi**2 a step, and a swing without torque never ends.
SWINGS = (200.0, 200 * np.pi**2 + 200 * 6.4)
STILL = {
    "pendulum": SWINGS,
    "delayed_pendulum": SWINGS,
    "mountain_car": (200.0, 200.0),
    "acrobot": (500.0, 500.0),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_score_is_that_of_episodes_of_the_machine(name):
    problem = PROBLEMS[name]()
    still = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    costs = [float(problem.score(still, problem.test[at : at + 1])) for at in range(3)]
    assert float(problem.score(still, problem.test[:3])) == pytest.approx(np.mean(costs))
    low, high = STILL[name]
    assert all(low <= cost <= high for cost in costs)
    tuned_on = {*np.array(problem.train), *np.array(problem.validation)}
    assert tuned_on.isdisjoint(np.array(problem.test))


def test_rewards_that_are_delayed_add_up_to_the_same():
    act = lambda observation, key: (observation[:1], None)  # noqa: E731
    at_once, delayed = (
        play(TASKS[name], act, jnp.uint32(3)) for name in ("pendulum", "delayed_pendulum")
    )
    assert jnp.array_equal(at_once.observations, delayed.observations)
    assert jnp.all(delayed.rewards[:-1] == 0)
    assert delayed.rewards[-1] == pytest.approx(float(jnp.sum(at_once.rewards)), rel=1e-5)


def test_an_episode_that_has_ended_stands_still_and_pays_nothing():
    # To push the way that the car goes brings it up the hill.
    act = lambda observation, key: (1 + jnp.sign(observation[1]).astype(int), None)  # noqa: E731
    seen = play(TASKS["mountain_car"], act, jnp.uint32(3))
    steps = int(jnp.sum(seen.going_on))
    assert 80 < steps < 200
    assert bool(seen.ended)
    assert jnp.array_equal(seen.going_on, jnp.arange(200) < steps)
    assert jnp.array_equal(seen.rewards, -seen.going_on.astype(float))
    assert jnp.all(seen.observations[steps:] == seen.last)
    assert seen.last[0] >= 0.5


def test_ppo_learns_nothing_from_steps_behind_the_end_of_an_episode():
    task, problem = TASKS["mountain_car"], PROBLEMS["mountain_car"]()
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "policy": problem.init(keys[0]),
        "log_std": jnp.zeros(task.actions),
        "value": layers.perceptron(2, 8, 1)(keys[1]),
    }

    def slope(steps):
        return jax.grad(ppo._loss)(params, task, steps, 0.1)

    seen = ppo.Transitions(
        weights=jnp.ones(8),
        observations=jax.random.normal(keys[2], (8, 2)),
        actions=jax.random.randint(keys[3], (8,), 0, 3),
        likelihoods=-jnp.ones(8),
        advantages=jax.random.normal(keys[4], (8,)),
        returns=jax.random.normal(keys[5], (8,)),
    )
    others = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:3]]), seen)
    others = others._replace(weights=jnp.repeat(jnp.array([1.0, 0.0]), jnp.array([8, 3])))
    for one, other in zip(*map(jax.tree.leaves, (slope(seen), slope(others))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", POLICIES)
def test_methods_keep_to_the_budget_and_use_most_of_it(name):
    for problem in (make() for make in PROBLEMS.values()):
        for settings in draws(POLICIES[name], 4):
            spent = POLICIES[name].plan(problem, split(settings)[1], problem.budget).forwards
            assert 0.85 * problem.budget < spent <= problem.budget


@pytest.mark.parametrize(
    ("on", "name"),
    [*(("delayed_pendulum", name) for name in POLICIES), ("mountain_car", "metric_on_ppo")],
)
def test_methods_change_the_policy_and_nothing_else_is_returned(on, name):
    problem, method = PROBLEMS[on](), POLICIES[name]
    settings = method.settings(np.random.default_rng(0))
    trainer = Trainer(method, problem, 200, known("read"))
    found, again = trainer(settings, 0), trainer(settings, 0)
    params = problem.init(streams(jax.random.key(0)).init)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for leaf, same, before in zip(*map(jax.tree.leaves, (found, again, params)), strict=True):
        assert jnp.all(jnp.isfinite(leaf))
        assert jnp.array_equal(leaf, same)
        assert not jnp.array_equal(leaf, before)
