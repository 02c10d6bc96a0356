"""Adam on a differentiable stand-in for the fitness: the trick to beat where there is one."""

from collections.abc import Callable
import operator

import jax
import jax.numpy as jnp

from benchmarks.quality import ledger
from benchmarks.quality.methods.gradient import adam, adam_settings, descend
from benchmarks.quality.methods.method import Method, Plan, Rates, Static, streams
from benchmarks.quality.problem import Batch, Objective, Params, Problem


def has_stand_in(problem: Problem) -> bool:
    """Whether there is such a stand-in."""
    return problem.straight_through is not None


def plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    of: Callable[[Problem], Objective | None] = operator.attrgetter("straight_through"),
) -> Plan:
    """Descends on the stand-in that `of` takes from the problem, for all of the budget."""
    objective = of(problem)
    assert objective is not None
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        return descend(problem, objective, adam(rates, steps, keys.noise), keys, data, steps)

    return Plan(prices.spent(steps), train)


def _train_and_validation(problem: Problem) -> Batch:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), problem.train, problem.validation)


STRAIGHT_THROUGH = Method("straight_through", adam_settings, plan, has_stand_in)

METHODS = (
    STRAIGHT_THROUGH,
    STRAIGHT_THROUGH._replace(name="straight_through_3x", budget=3.0),
    STRAIGHT_THROUGH._replace(
        name="straight_through_more_data",
        data=_train_and_validation,
        settings_of=("straight_through",),
    ),
)
