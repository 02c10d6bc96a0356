"""Adam on a differentiable stand-in for the fitness: the trick to beat where there is one."""

import functools
import operator

import jax
import jax.numpy as jnp

from benchmarks.quality.methods.gradient import adam, adam_settings, plan
from benchmarks.quality.methods.method import Method
from benchmarks.quality.problem import Batch, Problem


def has_stand_in(problem: Problem) -> bool:
    """Whether there is such a stand-in."""
    return problem.straight_through is not None


def _train_and_validation(problem: Problem) -> Batch:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), problem.train, problem.validation)


STRAIGHT_THROUGH = Method(
    "straight_through",
    adam_settings,
    functools.partial(plan, base=adam, of=operator.attrgetter("straight_through")),
    has_stand_in,
)

METHODS = (
    STRAIGHT_THROUGH,
    STRAIGHT_THROUGH._replace(name="straight_through_3x", budget=3.0),
    STRAIGHT_THROUGH._replace(
        name="straight_through_more_data",
        data=_train_and_validation,
        settings_of=("straight_through",),
    ),
)
