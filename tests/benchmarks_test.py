"""The benchmarks compare fairly, and the documentation shows what they found."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import cycle, measure, models, noise, table

pytestmark = pytest.mark.long

# The summary of the quality benchmark has records of its own, see `quality_test.py`.
RESULTS = sorted({path.stem for path in measure.RESULTS.glob("*.json")} - {"quality"})


@pytest.mark.parametrize(
    ("path", "shown"),
    table.documents().items(),
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_the_tables_shown_are_those_of_the_results(path, shown):
    document = path.read_text()
    assert table.rewritten(document, shown) == document
    assert all(rows for found in shown.values() for _, _, rows in found)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_says_what_it_was_measured_with(name):
    record = measure.load(name)
    assert {"jax", "jaxlib", "optax", "egd_optax"} <= record["versions"].keys()
    assert record["device"]["kind"]
    assert record["date"]
    for row in record["rows"]:
        if "ratio" in row:
            assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
            assert row["ratio"]["count"] >= 3


def test_runs_take_turns_and_are_divided_by_the_reference():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure.compare(runs, "a", rounds=4)
    rounds = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert len(rounds) == 5  # the first compiles
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert timings["a"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0, "count": 4}


def test_a_loop_goes_on_where_it_ended_and_leaves_its_start_alone():
    start = jnp.zeros(3)
    run = measure.loop(jax.jit(lambda x: x + 1, donate_argnums=0), start, steps=2)
    assert (run() == 2).all()
    assert (run() == 4).all()
    assert (start == 0).all()


@pytest.mark.parametrize("make", [models.perceptron, models.transformer])
def test_networks_have_about_the_size_asked_for(make):
    problem = make(10**5, 4)
    assert 0.8e5 < models.size(problem.params) < 1.2e5
    assert jnp.isfinite(problem.loss(problem.params, problem.batch))


def counting(problem, calls):
    """The problem, with a loss that counts how often it runs."""

    def loss(params, batch):
        value = problem.loss(params, batch)
        jax.debug.callback(lambda _: calls.append(1), value)
        return value

    return problem._replace(loss=loss)


@pytest.mark.parametrize(
    "make",
    [
        lambda problem: cycle.floor(problem, 6, draws=5),
        lambda problem: cycle.floor(problem, 6, draws=7),
        lambda problem: cycle.cycle(problem, population_size=6),
        lambda problem: noise.forwards(problem, 7),
    ],
)
def test_what_is_compared_runs_as_many_forward_passes(make):
    calls = []
    jax.block_until_ready(make(counting(models.perceptron(1000, 4), calls))())
    jax.effects_barrier()
    assert len(calls) == 7
