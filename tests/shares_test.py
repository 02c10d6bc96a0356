"""The benchmark of shares: the cycles of the preset, at equal compute, and a fair control."""

import jax.numpy as jnp
import numpy as np
import pytest
from quality_test import TOY

from benchmarks.quality import longer, selection
from benchmarks.quality.methods import METHODS, SHARES, shares
from benchmarks.quality.methods.method import Trainer, split
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.record import Store
from benchmarks.quality.runner import Effort, complete, draws
from egd_optax import is_due, presets, recombine

pytestmark = pytest.mark.long

WITHOUT_STAND_IN = TOY._replace(straight_through=None)
WINDOWS = {"light": (0.1, (0.0, 0.5)), "share_30": (0.3, (0.0, 1.0))}


def settings_of(name, **changes):
    return {**SHARES[name].settings(np.random.default_rng(0)), **changes}


def end_of(name, problem=TOY, **changes):
    return Trainer(SHARES[name], problem, problem.budget)(settings_of(name, **changes), 0)["x"]


@pytest.mark.parametrize("name", SHARES)
def test_shares_keep_to_the_budget_and_use_most_of_it(name):
    method = SHARES[name]
    for problem in (TOY, WITHOUT_STAND_IN):
        if method.applies(problem):
            for settings in draws(method, 4):
                spent = method.plan(problem, split(settings)[1], problem.budget).forwards
                assert 0.95 * problem.budget < spent <= problem.budget
    assert method.applies(TOY) or method.applies(WITHOUT_STAND_IN) or name.startswith("global")


@pytest.mark.parametrize("problem", ["int4_digits", "f1_imbalanced", "diabetes"])
@pytest.mark.parametrize("name", WINDOWS)
def test_cycles_run_when_those_of_the_preset_are_due(problem, name):
    problem = PROBLEMS[problem]()
    share, window = WINDOWS[name]
    static = split(settings_of(name))[1]
    price = static["population"] * static["samples"]
    schedule = shares.within_share(
        problem, static, problem.budget, price, share=share, window=window
    )
    preset = presets.metric(
        schedule.steps,
        share=share,
        window=window,
        samples=static["samples"] / problem.batch_size,
    )
    due = [
        step
        for step in range(1, schedule.steps + 1)
        if is_due(step, preset["evolve_every"], preset["window"])
    ]
    every = schedule.evolve_every
    assert due == [*range(every, schedule.steps - schedule.last + 1, every)]
    assert len(due) == schedule.cycles
    spent = len(due) * price
    assert schedule.forwards == spent + 3 * problem.batch_size * schedule.steps
    assert 0.85 * share < spent / problem.budget <= share


@pytest.mark.parametrize("name", ["light", "share_30", "finish"])
def test_a_control_differs_by_its_ranks_alone(name):
    control = SHARES[name + shares.RANDOM]
    assert control.settings_of == (name,)
    assert not jnp.array_equal(end_of(name), end_of(control.name))
    # Without a step nothing is left of the ranks.
    still = {"recombine_step": 0.0}
    assert jnp.array_equal(end_of(name, **still), end_of(control.name, **still))
    rule = shares.with_random_ranks(lambda *_: {"recombine": recombine.centered_rank()})
    assert rule({}, {}, 1)["recombine"] == recombine.shuffled(recombine.centered_rank())


@pytest.mark.parametrize("problem", [TOY, WITHOUT_STAND_IN], ids=["stand-in", "loss"])
def test_a_finish_goes_on_from_where_the_gradients_of_nine_tenths_end(problem):
    settings = settings_of("finish", recombine_step=0.0)
    base = METHODS["straight_through" if problem.straight_through else "adam"]
    population = settings["population"]
    whole = len(TOY.train) * population
    generations = problem.budget // 10 // whole
    rest = problem.budget - generations * whole
    rate = {"learning_rate": settings["learning_rate"]}
    expected = Trainer(base, problem, rest)(rate, 0)["x"]
    assert jnp.array_equal(end_of("finish", problem, recombine_step=0.0), expected)
    assert not jnp.array_equal(end_of("finish", problem), expected)


def test_a_control_takes_over_what_was_tuned(tmp_path):
    store = Store(tmp_path)
    small = Effort(trials=2, tune_seeds=1, seeds=2, share=0.05, past_edges=False)
    control = complete(SHARES["finish" + shares.RANDOM], TOY, store, small)
    tuned = store.load("toy", "finish")
    assert control["settings"] == tuned["settings"]
    assert "trials" not in control
    assert control["forwards"] == tuned["forwards"]


def test_what_is_tuned_behind_the_base_takes_its_learning_rate_or_twice_that(tmp_path):
    store = Store(tmp_path)
    small = Effort(trials=3, tune_seeds=1, seeds=2, share=0.5, past_edges=False)
    name = "light_at_rate_of_straight_through"
    record = complete(SHARES[name], TOY, store, small)
    rate = store.load("toy", "straight_through")["settings"]["learning_rate"]
    tried = [trial["settings"] for trial in record["trials"]]
    assert {settings["learning_rate"] / rate for settings in tried} <= {1.0, 2.0}
    assert len({settings["sigma"] for settings in tried}) == len(tried) == 3
    assert all("times" not in settings for settings in tried)
    control = complete(SHARES[name + shares.RANDOM], TOY, store, small)
    assert control["settings"] == record["settings"]


@pytest.mark.parametrize(
    ("way", "preset"), [("light", presets.metric(5000)), ("finish", presets.finish())]
)
def test_what_is_as_shipped_has_the_noise_of_the_preset_and_tunes_nothing(way, preset, tmp_path):
    store = Store(tmp_path)
    small = Effort(trials=2, tune_seeds=1, seeds=2, share=0.5, past_edges=False)
    record = complete(SHARES[f"{way}_as_shipped_on_straight_through"], TOY, store, small)
    base = store.load("toy", "straight_through")["settings"]
    assert record["settings"]["learning_rate"] == base["learning_rate"]
    assert record["settings"]["sigma"] == pytest.approx(float(preset["sigma"](0)))
    assert record["settings"]["population"] == preset["population_size"]
    assert record["settings"]["recombine_step"] == 1.0
    assert "trials" not in record


def test_what_selection_adds_is_counted(tmp_path):
    store = Store(tmp_path)
    rng = np.random.default_rng(0)
    reference = rng.normal(1.0, 0.01, 30)

    def save(name, shift):
        scores = reference + shift + rng.normal(0, 0.001, 30)
        store.save("toy", name, {"scores": scores.tolist()})

    save("straight_through", 0.0)
    # Selection helps; the jumps alone do; a finish does harm.
    for name, shift, random in (
        ("light", -0.1, 0.0), ("share_30", -0.1, -0.1), ("finish", 0.1, 0.2)
    ):  # fmt: skip
        save(name, shift)
        save(name + shares.RANDOM, random)
    found = list(selection.compared([TOY], store))
    assert [one.way for one in found] == ["light", "three tenths", "finish"]
    (_, header, (row,)), (_, _, other) = selection.overview(found)
    assert row[:2] == ["Toy", f"{np.median(reference):.3g}"]
    cells = dict(zip(header[2:], row[2:], strict=True))
    assert [way for way, cell in cells.items() if cell.startswith("**")] == ["light"]
    assert [way for way, cell in cells.items() if cell] == ["light", "three tenths"]
    assert other == []
    counts = {way: rest for way, *rest in selection.tallies(found)}
    assert counts["light"] == ["1", "1 / 0", "1 / 0"]
    assert counts["three tenths"][:2] == ["1", "1 / 0"]
    assert counts["finish"] == ["1", "0 / 1", "1 / 0"]
    assert counts.keys() == {"light", "three tenths", "finish"}
    ((title, rows),) = selection.sections(found)
    assert title.startswith("Toy, against straight-through 0.99")
    assert [row[0] for row in rows] == ["light", "three tenths", "finish"]


def test_what_is_picked_is_the_lowest_in_tuning(tmp_path):
    store = Store(tmp_path)

    def save(name, validation, score):
        trials = [{"settings": {}, "scores": [by, by]} for by in (9.0, validation)]
        store.save("toy", name, {"trials": trials, "scores": [score, score]})

    save("straight_through", 0.3, 1.0)
    save("light", 0.3, 2.0)
    save("share_30", 0.5, 3.0)
    assert selection.picked(TOY, store) is None
    save("metric_on_straight_through", 0.4, 4.0)
    assert selection.picked(TOY, store) == "straight_through"
    (alone,) = selection.compared([TOY], store)
    assert (alone.way, alone.scores, alone.random) == (selection.PICKED, [1.0, 1.0], [1.0, 1.0])
    save("share_30", 0.2, 3.0)
    assert selection.picked(TOY, store) == "share_30"


def test_longer_runs_are_compared_with_the_base_of_their_length(tmp_path):
    store = Store(tmp_path)

    def reach(name, scores):
        store.save(TOY.name, name, {"scores": scores})

    def reach_all(ending, reference, ours, random):
        reach(f"straight_through{ending}", reference)
        for way in longer.SHARED:
            reach(f"{way}{ending}", ours)
            reach(f"{way}_random_ranks{ending}", random)

    reach_all("", [1.0, 1.1], [2.0, 2.1], [2.0, 2.1])
    assert longer.rows([TOY], store) == []  # of one length
    reach_all("_carried_3x", [4.0, 4.1], [3.0, 3.1], [5.0, 5.1])
    ((_, *cells),) = longer.rows([TOY], store)
    ours = "2.05 (2.05); **3.05** (5.05)"
    assert cells == ["1.05; 4.05", ours, ours]
