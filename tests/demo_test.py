"""The demo counts its compute right, rounds right, and runs from end to end."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.quality import digits
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.ternary import round_tensor, straight_through
from demo import landscape, network
from demo.__main__ import main
from demo.method import Cycles, Method
from demo.stories import BUDGET, CHECKS, SEEDS, STORIES, Story, as_trained, ternarize
from demo.train import run
from demo.tune import SEEDS as TUNING_SEEDS
from demo.tune import grid
from egd_optax import accept, recombine

METHODS = [method for story in STORIES for method in story.methods.values()]
# Small, and the same in all tests, so that each program is compiled once.
SMALL_SGD = Method("sgd", 0.1, 8)
SMALL_CYCLES = Cycles(
    fitness_size=16,
    evolve_every=3,
    population_size=4,
    sigma=0.05,
    accept=accept.improved(),
    recombine=recombine.centered_rank(),
    antithetic=True,
)
SMALL_EGD = SMALL_SGD._replace(cycles=SMALL_CYCLES)
SMALL_BUDGET = 1_300
DESCENTS = landscape.METHODS


@pytest.mark.parametrize("ledger", [Ledger(96), Ledger(96, 1056, 10), Ledger(3, 500, 1)])
@pytest.mark.parametrize("budget", [0, 95, 1_152, 2_016, 10_000, 600_000])
def test_ledger_takes_the_most_steps_that_the_budget_allows(ledger, budget):
    steps = ledger.steps_within(budget)
    assert ledger.spent(steps) <= budget < ledger.spent(steps + 1)


@pytest.mark.parametrize("method", METHODS)
def test_methods_spend_the_budget_to_within_a_step_and_a_cycle(method):
    ledger = method.ledger
    for check in range(1, CHECKS + 1):
        share = BUDGET * check // CHECKS
        spent = ledger.spent(ledger.steps_within(share))
        assert share - ledger.step - ledger.cycle < spent <= share


@pytest.mark.parametrize("antithetic", [False, True])
def test_ledger_charges_what_the_optimizer_evaluates(antithetic):
    method = SMALL_SGD._replace(cycles=SMALL_CYCLES._replace(antithetic=antithetic))
    optimizer = method.optimizer(steps=3)
    params = {"w": jnp.ones([3, 2])}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params, value_fn=lambda p: jnp.sum(p["w"]))
    cycles = int(state.cycle) * int(state.info.evaluations) * SMALL_CYCLES.fitness_size
    assert method.ledger.spent(3) == 3 * 3 * 8 + cycles


@pytest.mark.wide
def test_run_reports_the_cycles_and_validations_it_paid_for():
    result = run(SMALL_EGD, ternarize, digits.load(), seed=7, budget=SMALL_BUDGET, checks=4)
    assert result.forwards == SMALL_EGD.ledger.spent(SMALL_EGD.ledger.steps_within(SMALL_BUDGET))
    period = SMALL_EGD.ledger.spent(3)
    assert [forwards for forwards, _ in result.cycles] == [period * n for n in range(1, 8)]
    assert [at.forwards for at in result.checkpoints] == sorted(
        at.forwards for at in result.checkpoints
    )
    assert len(result.checkpoints) == 4
    assert result.best.validation.error == min(at.validation.error for at in result.checkpoints)


@pytest.mark.wide
def test_a_run_repeats_to_the_bit_and_seeds_differ():
    data = digits.load()
    first, again, other = (
        run(SMALL_EGD, ternarize, data, seed=seed, budget=SMALL_BUDGET, checks=1)
        for seed in (7, 7, 8)
    )
    assert first.test == again.test
    assert first.test.loss != other.test.loss


def test_ternarize_leaves_three_values_a_matrix_and_the_biases():
    params = jax.tree.map(lambda leaf: leaf + 0.01, network.init(jax.random.key(0)))
    rounded = ternarize(params)
    for (path, before), after in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(rounded), strict=True
    ):
        if "bias" in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(after, before)
        else:
            values = np.unique(after)
            assert len(values) == 3
            assert values[2] == -values[0] == np.abs(before).max()
            assert values[1] == 0
    for leaf in jax.tree.leaves(ternarize(jax.tree.map(jnp.zeros_like, params))):
        assert not np.any(leaf)


def test_round_tensor_keeps_what_is_above_the_threshold():
    # The mean magnitude is 2, so the threshold is 1.4; the scale is (2 + 4) / 2.
    np.testing.assert_array_equal(round_tensor(jnp.array([1.0, -1.0, 2.0, -4.0])), [0, 0, 3, -3])


def test_rounding_hides_the_gradient_and_straight_through_restores_it():
    weights = jnp.array([[0.1, -0.2], [1.0, -1.0]])
    through = jax.grad(lambda w: jnp.sum(straight_through(ternarize, w) * weights))(weights)
    np.testing.assert_array_equal(through, weights)
    np.testing.assert_allclose(straight_through(ternarize, weights), ternarize(weights))
    below = jax.grad(lambda w: jnp.sum(ternarize(w)))(weights)[0]
    np.testing.assert_array_equal(below, [0, 0])


def test_splits_share_no_image():
    data = digits.load()
    assert [len(split.labels) for split in data] == [897, 450, 450]
    rows = np.concatenate([split.images for split in data])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_shown_seeds_are_not_those_of_tuning():
    assert not set(SEEDS) & set(TUNING_SEEDS)


@pytest.mark.parametrize("method", METHODS)
def test_shown_settings_are_one_of_twelve_that_tuning_tried(method):
    settings = grid(method)
    assert len(set(settings)) == 12
    assert method in settings


@pytest.mark.wide
def test_demo_writes_the_figure_and_the_numbers(tmp_path):
    stories = [
        Story("Plain", as_trained, {"SGD": SMALL_SGD}),
        Story("Rounded", ternarize, {"SGD": SMALL_SGD, "EGD": SMALL_EGD}),
    ]
    printed = io.StringIO()
    main(
        output=tmp_path / "new",
        stories=stories,
        seeds=(7, 8),
        budget=SMALL_BUDGET,
        checks=2,
        descents={"Adam": DESCENTS["Adam"], "EGD": DESCENTS["Adam + cycles"]},
        evaluations=SMALL_BUDGET,
        console=Console(file=printed),
    )
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert content["versions"]["jax"] == jax.__version__
    for story in stories:
        for name in story.methods:
            runs = content["stories"][story.title][name]["runs"]
            assert [result["seed"] for result in runs] == [7, 8]
            for result in runs:
                assert 0 <= result["test_error"] <= 1
                assert np.isfinite(result["test_loss"])
                assert len(result["validation"]) == 2
    for name in ("Adam", "EGD"):
        runs = content["landscape"][name]["runs"]
        assert [result["seed"] for result in runs] == [7, 8]
        assert all(np.isfinite(result["value"]) for result in runs)
    # A progress bar that is not on a terminal prints itself once, not for every check.
    assert len(printed.getvalue().splitlines()) < 50


@pytest.mark.crossed(1)
@pytest.mark.parametrize("name", DESCENTS)
def test_a_descent_pays_for_what_is_evaluated(name):
    method = DESCENTS[name]
    path = landscape.run(method, seed=3, budget=SMALL_BUDGET)
    assert SMALL_BUDGET - method.ledger.spent(1) < path.forwards[-1] <= SMALL_BUDGET
    assert path.forwards == sorted(path.forwards)
    assert len(path.values) == len(path.forwards)
    if method.sigma is not None:
        params = {"x": jnp.ones(100)}
        optimizer = method.optimizer(1, jax.random.key(0))
        _, state = optimizer.update(
            params, optimizer.init(params), params, value_fn=lambda p: jnp.sum(p["x"])
        )
        assert method.ledger.cycle == state.info.evaluations


@pytest.mark.parametrize("name", DESCENTS)
def test_shown_descents_are_one_of_twelve_that_tuning_tried(name):
    settings = landscape.grid(DESCENTS[name])
    assert len(set(settings)) == 12
    assert DESCENTS[name] in settings


def test_paths_from_one_seed_repeat_and_others_differ():
    first, again, other = (
        landscape.run(DESCENTS["Adam + cycles"], seed=seed, budget=SMALL_BUDGET)
        for seed in (7, 7, 8)
    )
    assert first.values == again.values
    assert first.values[0] != other.values[0]
