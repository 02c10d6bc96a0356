"""The policies of the quality benchmark, which need Gymnax and evosax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality.methods import POLICIES
from benchmarks.quality.methods.method import Trainer, split, streams
from benchmarks.quality.problems import POLICIES as PROBLEMS
from benchmarks.quality.problems.policies import TASKS, play
from benchmarks.quality.runner import draws


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_score_is_that_of_episodes_of_the_machine(name):
    problem = PROBLEMS[name]()
    still = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    costs = [float(problem.score(still, problem.test[at : at + 1])) for at in range(3)]
    assert float(problem.score(still, problem.test[:3])) == pytest.approx(np.mean(costs))
    # Hanging still costs pi**2 a step, and a swing without torque never ends.
    assert all(200 < cost < 200 * np.pi**2 + 200 * 6.4 for cost in costs)
    tuned_on = {*np.array(problem.train), *np.array(problem.validation)}
    assert tuned_on.isdisjoint(np.array(problem.test))


def test_rewards_that_are_delayed_add_up_to_the_same():
    act = lambda observation, key: (observation[:1], None)  # noqa: E731
    at_once, delayed = (play(TASKS[name], act, jnp.uint32(3)) for name in PROBLEMS)
    assert jnp.array_equal(at_once.observations, delayed.observations)
    assert jnp.all(delayed.rewards[:-1] == 0)
    assert delayed.rewards[-1] == pytest.approx(float(jnp.sum(at_once.rewards)), rel=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_methods_keep_to_the_budget_and_use_most_of_it(name):
    problem = PROBLEMS["pendulum"]()
    for settings in draws(POLICIES[name], 4):
        spent = POLICIES[name].plan(problem, split(settings)[1], problem.budget).forwards
        assert 0.9 * problem.budget < spent <= problem.budget


@pytest.mark.parametrize("name", POLICIES)
def test_methods_change_the_policy_and_nothing_else_is_returned(name):
    problem, method = PROBLEMS["delayed_pendulum"](), POLICIES[name]
    settings = method.settings(np.random.default_rng(0))
    trainer = Trainer(method, problem, 200, {"xla_backend_optimization_level": 0})
    found, again = trainer(settings, 0), trainer(settings, 0)
    params = problem.init(streams(jax.random.key(0)).init)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for leaf, same, before in zip(*map(jax.tree.leaves, (found, again, params)), strict=True):
        assert jnp.all(jnp.isfinite(leaf))
        assert jnp.array_equal(leaf, same)
        assert not jnp.array_equal(leaf, before)
