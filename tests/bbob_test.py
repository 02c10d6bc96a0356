"""The functions of BBOB are COCO's, and what runs spend on them is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.bbob import cycles, descent, methods, record, reference, seen
from benchmarks.bbob.functions import FUNCTIONS, GROUPS, MULTIMODAL
from benchmarks.bbob.instance import instance
from benchmarks.bbob.method import LANES, minimise, start


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_are_those_of_coco(function):
    stored = reference.load()
    value = jax.jit(FUNCTIONS[function])
    for number in reference.INSTANCES:
        at = instance(function, number, stored["dimension"])
        found = [value(x, at) for x in reference.points(function, number)]
        np.testing.assert_allclose(found, stored["values"][f"{function}, {number}"], rtol=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_optimum_is_zero_and_gradients_are_finite(function):
    at = instance(function, 3, 5)
    points = np.append(at["x_opt"][None], np.random.default_rng(0).uniform(-8, 8, [20, 5]), axis=0)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(FUNCTIONS[function]), (0, None)))(
        points, at
    )
    assert abs(values[0]) < 1e-12
    assert (values[1:] > 1e-8).all()
    assert np.isfinite(slopes).all()


def test_each_function_is_in_one_group():
    assert [function for group in GROUPS.values() for function in group] == list(FUNCTIONS)
    assert set(MULTIMODAL) < set(FUNCTIONS)


def test_instances_differ_and_repeat():
    first, again, other = (instance(15, number, 4) for number in (1, 1, 2))
    for name, leaf in first.items():
        assert np.array_equal(leaf, again[name])
        assert not np.array_equal(leaf, other[name])
    for turn in (first["r"], first["q"]):
        np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-12)


def test_what_lies_beyond_a_limit_is_not_seen_within_it():
    ledger = seen.nothing_seen(dimension=2)  # read after 20, 60, 200, 600 and 2000
    for cost, value in ((20, 5.0), (30, 7.0), (11, 3.0), (1938, jnp.nan)):
        assert ledger.goes_on()
        ledger = ledger.after(cost, value)
    assert ledger.spent == 1999
    ledger = ledger.after(1, 2.0)
    assert not ledger.goes_on()
    ledger = ledger.after(1, 1.0)
    assert ledger.spent == 2001
    assert ledger.best.tolist() == [5.0, 5.0, 3.0, 3.0, 2.0]


def test_the_targets_that_a_known_trajectory_hits():
    trajectory = np.array([np.inf, 101.0, 100.0, 1.0, 1e-3, 9.9e-9, 0.0, np.nan])
    assert seen.TARGETS.size == 51
    assert seen.hit(trajectory).tolist() == [0, 0, 1, 11, 26, 51, 51, 0]


def test_a_summary_counts_over_runs_and_instances():
    best = np.full([2, 3, len(seen.READ_AT)], 1e3)
    best[0, 0] = [1e3, 1e2, 1e2, 1.0, 1e-9]
    best[1, 2, -1] = 1.0
    found = record.summary(best)
    assert found["hits"] == [0, 1, 1, 11, 62]
    assert found["by_instance"] == [51, 11]
    assert found["by_run"] == [0, 0, 8.25]
    assert found["values"][1] == 1e3


def test_the_settings_with_the_largest_share_are_chosen(monkeypatch):
    ours, grid = methods.METHODS[methods.OURS], methods.METHODS[methods.OURS].grid
    rows = [
        {"method": methods.OURS, "kind": kind, "numbers": numbers, "share": share}
        for kind, numbers, share in zip([*ours.runs] * 2, grid, (0.1, 0.3, 0.2, 0.4), strict=False)
    ]
    monkeypatch.setattr(record.measure, "load", lambda name: {"rows": rows})
    expected = rows[3]["kind"], grid[3]
    assert record.chosen(methods.OURS) == record.chosen(methods.CONTROL) == expected
    assert record.chosen("L-BFGS") == ("", {"tolerance": -1.0})


def counted(counts):
    """A function of many minima that counts its values, and its values with a gradient."""

    def count(what, x):  # under `vmap` once for each point
        jax.debug.callback(lambda _: counts.update({what: counts[what] + 1}), x)

    def plain(x):
        return jnp.sum(x**2 + 3 * (1 - jnp.cos(3 * x)))

    @jax.custom_vjp
    def value(x):
        count("value", x)
        return plain(x)

    def forward(x):
        count("gradient", x)
        return jax.value_and_grad(plain)(x)

    value.defvjp(forward, lambda slope, ct: (ct * slope,))
    return value


RUNS = {
    "adam": (descent.adam, {"learning_rate": 0.1}),
    "lbfgs": (descent.lbfgs, {"tolerance": -1.0}),
    "restarts": (descent.lbfgs, {"tolerance": 1e-9}),
    "around_lbfgs": (cycles.around_lbfgs(8, 20), {"sigma": 1.0, "tolerance": 1e-9}),
    "around_adam": (cycles.around_adam(0.9), {"sigma": 1.0, "learning_rate": 0.1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_ledger_counts_what_is_evaluated(name):
    run, numbers = RUNS[name]
    counts = {"value": 0, "gradient": 0}
    value, key = counted(counts), jax.random.key(0)
    found = jax.jit(lambda x: run(value, x, key, **numbers))(start(key, 2))
    jax.effects_barrier()
    assert found.spent == counts["value"] + 3 * counts["gradient"]
    assert 0.99 * 2000 < found.spent < 2000 + 200
    assert (counts["value"] > 0) == name.startswith("around")
    assert (np.diff(found.best) <= 0).all()


def test_random_ranks_pay_for_members_and_do_not_look_at_them():
    run = cycles.around_lbfgs(8, 20, random_ranks=True)
    counts = {"value": 0, "gradient": 0}
    value, key = counted(counts), jax.random.key(0)
    found = jax.jit(lambda x: run(value, x, key, sigma=1.0, tolerance=1e-9))(start(key, 2))
    jax.effects_barrier()
    assert counts["value"] == 0
    assert (found.spent - 3 * counts["gradient"]) % 160 == 0
    assert found.spent > 3 * counts["gradient"]


def test_before_the_first_minimum_cycles_around_lbfgs_are_lbfgs():
    at = instance(8, 1, 4)
    results = []
    for run, numbers in (
        (descent.lbfgs, {}),
        (cycles.around_lbfgs(8, 20), {"sigma": 1.0}),
    ):
        key = jax.random.key(1)

        def whole(x, run=run, key=key, numbers=numbers):
            return run(lambda x: FUNCTIONS[8](x, at), x, key, tolerance=-1.0, **numbers).best

        results.append(jax.jit(whole)(start(key, 4)))
    np.testing.assert_allclose(results[0][:3], results[1][:3], rtol=1e-6)


def test_ranks_drawn_at_random_repeat_and_spread():
    points = start(jax.random.key(0), 400).reshape(200, 2)
    drawn = jax.vmap(cycles.random_rank(jax.random.key(1)))(points)
    assert np.array_equal(drawn, jax.vmap(cycles.random_rank(jax.random.key(1)))(points))
    assert len(set(drawn.tolist())) == 200
    assert 0.4 < drawn.mean() < 0.6
    assert abs(np.corrcoef(drawn, jnp.sum(points**2, axis=1))[0, 1]) < 0.25


def test_runs_do_not_depend_on_what_runs_beside_them():
    grid = [{"learning_rate": rate} for rate in (0.1, 0.3)]
    both = minimise(descent.adam, 1, (1, 2), LANES // 2, grid)
    alone = minimise(descent.adam, 1, (2,), 1, grid[1:])
    assert both.shape == (2, 2, LANES // 2, len(seen.READ_AT))
    np.testing.assert_array_equal(both[1, 1, 0], alone[0, 0, 0])
