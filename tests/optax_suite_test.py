"""The tests that optax ships for its own optimizers, run on ours: they are part of its wheel."""

from importlib import resources
import os
import types
import typing
import unittest.mock
import warnings

import jax
import jax.numpy as jnp
import optax
from optax import contrib
import pytest

from egd_optax import egd, evolve

# What we say of it is right, and is not what is tested here.
pytestmark = [
    pytest.mark.wide,
    pytest.mark.filterwarnings("ignore:optax.MultiSteps runs a due cycle"),
]

# The suites call `update` without a `value_fn`. That of contributed optimizers hands its objective
# to the one that it knows under this name.
_TAKES_AN_OBJECTIVE = "sophia"


def with_objective(learning_rate: optax.ScalarOrSchedule, name="egd"):
    """Ours in the place of an optimizer that gets the objective as `obj_fn`."""
    make = {"egd": egd, "evolve": lambda rate, **kwargs: evolve(optax.adam(rate), **kwargs)}[name]
    tx = make(learning_rate, evolve_every=50)

    def update(updates, state, params=None, *, obj_fn, **extra):
        def value_fn(params):
            return obj_fn(params).astype(jnp.float32)  # as is asked of losses in low precision

        return tx.update(updates, state, params, value_fn=value_fn, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def with_a_norm(tx):
    """Ours with a `value_fn`, where the suite has no objective."""

    def norm(params):
        return jnp.sum(params.astype(jnp.float32) ** 2)

    def update(updates, state, params=None, **extra):
        return tx.update(updates, state, params, value_fn=norm, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


OURS = (
    *(
        {
            "opt_name": _TAKES_AN_OBJECTIVE,
            "opt_kwargs": {"learning_rate": rate, "name": name},
            "wrapper_name": None,
            "wrapper_kwargs": None,
        }
        for name, rate in (("egd", 1e-3), ("evolve", 1e-2))
    ),
)
SHARDED = {
    name: with_a_norm(tx)
    for name, tx in {
        "egd": egd(1.0),
        "egd, every step": egd(1.0, evolve_every=1),
        "evolve": evolve(optax.adam(1.0), evolve_every=1),
    }.items()
}


def suite(package, file, case, **names):
    """A test case of optax, with other values for some names before the case is defined."""
    path = resources.files(package) / file
    before, behind = path.read_text().split(f"class {case}(")
    module = types.ModuleType(f"{package}.{file.removesuffix('.py')}")
    # It sets flags of XLA for a process of its own, and makes optimizers that warn.
    with unittest.mock.patch.dict(os.environ), warnings.catch_warnings(action="ignore"):
        exec(compile(before, str(path), "exec"), module.__dict__)
        vars(module).update(names)
        exec(compile(f"class {case}({behind}", str(path), "exec"), module.__dict__)
    return typing.cast(type, vars(module)[case])


ContribTest = suite(
    "optax.contrib",
    "_common_test.py",
    "ContribTest",
    _MAIN_OPTIMIZERS_UNDER_TEST=OURS,
    _ALL_OPTIMIZERS_UNDER_TEST=OURS,
)
ShardingTest = suite("optax._src", "sharding_test.py", "ShardingTest", OPTIMIZERS=SHARDED)


@pytest.fixture(autouse=True)
def ours_under_the_name_of_another(monkeypatch):
    monkeypatch.setattr(contrib, _TAKES_AN_OBJECTIVE, with_objective)


@pytest.fixture(autouse=True)
def a_version_that_compares_as_text(monkeypatch):
    """By which 0.10 comes before 0.7, so that the suite would skip what it tests."""
    monkeypatch.setattr(jax, "__version__", "9")


def test_ours_is_what_is_tested():
    cases = [name for name in dir(ContribTest) if name.startswith("test_")]
    assert len(cases) > 10
    names = [name for name in dir(ShardingTest) if "state_sharding" in name]
    assert len(names) == 2 * len(SHARDED)
    assert contrib.sophia is with_objective
