"""The benchmark of members that learn: at equal compute, and with a fair control."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quality_test import TOY

from benchmarks.quality import ledger
from benchmarks.quality.methods import LEARNING, learning, shares
from benchmarks.quality.methods.method import Trainer, split
from benchmarks.quality.runner import draws

pytestmark = pytest.mark.long

FAR = TOY._replace(kind="global", straight_through=None)


def problem_of(name):
    return FAR if name.startswith("global_") else TOY


def end_of(name, **changes):
    problem = problem_of(name)
    settings = {**LEARNING[name].settings(np.random.default_rng(0)), **changes}
    return Trainer(LEARNING[name], problem, problem.budget)(settings, 0)["x"]


@pytest.mark.parametrize("name", [name for name in LEARNING if not name.endswith(shares.RANDOM)])
def test_they_keep_to_the_budget_and_use_most_of_it(name):
    method, problem = LEARNING[name], problem_of(name)
    assert method.applies(problem)
    assert not method.applies(FAR if problem is TOY else TOY)
    for settings in draws(method, 4):
        spent = method.plan(problem, split(settings)[1], problem.budget).forwards
        assert 0.8 * problem.budget < spent <= problem.budget


@pytest.mark.parametrize("name", ["learning_elites", "learning_slope"])
def test_each_gradient_of_a_member_is_paid_for(name):
    calls = collections.Counter()

    def counted(what, objective):
        def fn(params, batch):
            # With an argument it is called for each member of a batch.
            jax.debug.callback(lambda _: calls.update([what]), params["x"][0])
            return objective(params, batch)

        return fn

    problem = TOY._replace(
        straight_through=counted("gradient", TOY.straight_through),
        fitness=counted("fitness", TOY.fitness),
        budget=60_000,
    )
    settings = LEARNING[name].settings(np.random.default_rng(0)) | {"interval": 20, "population": 8}
    trainer = Trainer(LEARNING[name], problem, problem.budget)
    jax.block_until_ready(trainer(settings, 0))
    jax.effects_barrier()
    spent = ledger.descent(problem).step * calls["gradient"]
    spent += min(settings["samples"], len(TOY.train)) * calls["fitness"]
    assert 0.9 * trainer.forwards(settings) < spent <= trainer.forwards(settings)


@pytest.mark.parametrize("name", ["learning_elites", "global_learning_slope"])
def test_a_control_differs_by_its_ranks_alone(name):
    control = LEARNING[name + shares.RANDOM]
    assert control.settings_of == (name,)
    always = {"accept": "always"}
    assert not jnp.array_equal(end_of(name, **always), end_of(control.name, **always))


def test_a_rate_beside_the_parameters_changes_no_problem():
    both = learning._with_rate(TOY)
    params = both.init(jax.random.key(0))
    assert params.rate == 1.0
    expected = TOY.loss(TOY.init(jax.random.key(0)), TOY.train)
    assert both.loss(params, TOY.train) == expected
