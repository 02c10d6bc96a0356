"""The quality benchmark compares at equal compute, resumes, and shows what it found."""

import functools
import hashlib
import json
import math
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.measure import RESULTS
from benchmarks.quality import (
    archive,
    decisions,
    edges,
    names,
    overview,
    report,
    reproduce,
    selection,
    sigmas,
    statistics,
)
from benchmarks.quality.ledger import generation_price
from benchmarks.quality.methods import (
    DECIDING,
    DIRECTIONS,
    METHODS,
    SHARES,
    VARIANTS,
    operators,
)
from benchmarks.quality.methods import POLICIES as SOLVERS
from benchmarks.quality.methods.cycles import GUARD_EVALUATIONS, RULES
from benchmarks.quality.methods.method import Trainer, split, streams
from benchmarks.quality.problem import Problem
from benchmarks.quality.problems import POLICIES, PROBLEMS
from benchmarks.quality.record import Store
from benchmarks.quality.runner import FIRST_SEED, FIRST_TUNE_SEED, Effort, complete, draws, mean
from egd_optax import accept, evolve, noise, presets, recombine

pytestmark = pytest.mark.long

RECORDS = archive.names()
# What a race is between.
ARMS = {**METHODS, **SHARES}


def parabola(params, batch):
    return jnp.mean((params["x"] - jnp.mean(batch)) ** 2)


TOY = Problem(
    name="toy",
    kind="metric",
    init=lambda key: {"x": jax.random.normal(key, [3])},
    loss=parabola,
    fitness=parabola,
    straight_through=parabola,
    score=parabola,
    train=jnp.linspace(0.0, 1.0, 40),
    validation=jnp.zeros(4),
    test=jnp.ones(4),
    batch_size=4,
    budget=30_000,
    read_out=parabola,
)


@pytest.mark.parametrize("name", PROBLEMS)
def test_objectives_take_any_batch_and_their_gradients_are_finite(name):
    problem = PROBLEMS[name]()
    params = problem.init(jax.random.key(0))
    batch = jax.tree.map(lambda leaf: leaf[:3], problem.train)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    for objective in (problem.loss, problem.fitness, problem.score):
        assert jax.eval_shape(objective, params, batch) == scalar
    value, slope = jax.jit(jax.value_and_grad(problem.loss))(params, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_to_the_budget_and_use_most_of_it(name):
    method = METHODS[name]
    if not method.applies(TOY):
        assert name in {
            "many_restarts",
            "global_",
            "global_then_base",
            "global_adaptive",
            "global_one_fifth_then_base",
            "global_separable_then_base",
            "adam_threshold",
            "adam_threshold_on_validation",
        }
        return
    budget = int(TOY.budget * method.budget)
    for settings in draws(method, 4):
        spent = method.plan(TOY, split(settings)[1], budget).forwards
        assert 0.5 * budget < spent <= budget


def test_a_search_that_ends_with_the_base_uses_its_budget():
    method, problem = METHODS["global_then_base"], PROBLEMS["levy_100"]()
    for settings in draws(method, 4):
        _, static = split(settings)
        assert static["polish"] == 5
        spent = method.plan(problem, static, problem.budget).forwards
        assert 0.999 * problem.budget < spent <= problem.budget


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_keeps_to_the_budget_and_uses_most_of_it(name):
    method = DECIDING[name]
    if not method.applies(TOY):
        # Light cycles are around what a user would descend on.
        assert "global_" in method.settings_of or name.endswith("light_on_adam")
        return
    arms = [ARMS[arm] for arm in method.settings_of]
    for base, preset in zip(*(draws(arm, 4) for arm in arms), strict=True):
        spent = method.plan(TOY, split(method.changed(base, preset))[1], TOY.budget).forwards
        assert 0.9 * TOY.budget < spent <= TOY.budget


def ends_at(name, settings, budget=TOY.budget):
    """Where a run ends, with settings in place of those that are drawn first."""
    method = METHODS[name]
    settings = {**method.settings(np.random.default_rng(0)), **settings}
    return Trainer(method, TOY, budget)(settings, 0)["x"]


def test_a_model_without_errors_is_trained_as_by_adam():
    rate = {"learning_rate": 0.01}
    end = ends_at("adam", rate)
    assert jnp.array_equal(ends_at("noise_injection", {**rate, "error": 0.0}), end)
    assert not jnp.array_equal(ends_at("noise_injection", {**rate, "error": 0.1}), end)


def test_evolution_after_gradients_goes_on_from_where_they_end():
    rate = {"learning_rate": 0.01}
    end = ends_at("straight_through", rate, budget=TOY.budget // 4)
    still = {**rate, "es_learning_rate": 0.0, "quarters": 1}
    assert jnp.array_equal(ends_at("straight_through_then_es", still), end)
    assert not jnp.array_equal(ends_at("straight_through_then_es", {**still, "quarters": 2}), end)


def test_simultaneous_perturbation_descends():
    start = TOY.init(streams(jax.random.key(0)).init)
    end = {"x": ends_at("spsa", {"learning_rate": 1.0, "sigma": 0.1})}
    assert parabola(end, TOY.train) < 0.1 * parabola(start, TOY.train)


def decided(way, problem, *, base_rate, preset_rate=0.01, preset="metric"):
    """Where a run ends that decides whether to evolve."""
    method = DECIDING[f"{way}_{preset}"]
    base, preset = (ARMS[arm].settings(np.random.default_rng(0)) for arm in method.settings_of)
    base, preset = {**base, "learning_rate": base_rate}, {**preset, "learning_rate": preset_rate}
    return Trainer(method, problem, problem.budget)(method.changed(base, preset), 0)["x"]


@pytest.mark.parametrize("preset", ["metric", "light_on_straight_through"])
def test_a_race_is_won_by_whoever_is_ahead(preset):
    start = TOY.init(streams(jax.random.key(0)).init)["x"]
    race = functools.partial(decided, "race", TOY, preset=preset)
    # A base that stands still loses to cycles, and cycles that diverge lose to it.
    assert not jnp.array_equal(race(base_rate=0.0), start)
    assert jnp.array_equal(race(base_rate=0.0, preset_rate=math.nan), start)


def test_a_gradient_that_sees_all_that_the_fitness_does_vetoes_cycles():
    start = TOY.init(streams(jax.random.key(0)).init)["x"]
    assert jnp.array_equal(decided("vetoed_race", TOY, base_rate=0.0), start)
    coarse = TOY._replace(fitness=lambda params, batch: jnp.sum(jnp.round(params["x"]) ** 2))
    assert not jnp.array_equal(decided("vetoed_race", coarse, base_rate=0.0), start)


@pytest.mark.parametrize("rule", ["always", "finite", "best"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_a_generation_is_charged_what_the_optimizer_evaluates(antithetic, rule):
    rule = RULES[rule]
    settings = {"population_size": 6, "antithetic": antithetic, "accept": rule}
    tx = evolve(optax.sgd(0.1), evolve_every=1, **settings)
    params = TOY.init(jax.random.key(0))
    _, state = tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["x"] ** 2))
    charged = generation_price(6, 16, antithetic=antithetic, compares=rule.compares)
    assert charged == 16 * int(state.info.evaluations)


@pytest.mark.parametrize(
    ("method", "guard"),
    [
        (VARIANTS["ablation_layer_by_layer"], 0),
        (VARIANTS["ablation_sigma_by_success"], 0),
        (VARIANTS["ablation_sigma_by_guarded_success"], len(TOY.train)),
        (DIRECTIONS["direction_second_moments"], 0),
    ],
    ids=lambda case: getattr(case, "name", None),
)
def test_a_cycle_with_operators_of_our_own_is_charged_what_it_evaluates(method, guard):
    rates, static = split(method.settings(np.random.default_rng(0)))
    charged = []

    def one_cycle(run, params):
        charged.append(run.prices.cycle)
        optimizer = run.optimizer(run.rates)
        carry = params, optimizer.init(params)
        (_, state), _ = run.step(jnp.int32(0), carry, optimizer, evolve=True)
        return state.info.evaluations

    train = method.plan(TOY, static, TOY.budget, loop=one_cycle).train
    evaluations = int(jax.jit(train)(jax.random.key(0), rates, TOY.train))
    assert charged == [static["samples"] * evaluations + GUARD_EVALUATIONS * guard]


def test_layers_move_in_turn():
    tx = evolve(
        optax.set_to_zero(),
        evolve_every=1,
        noise=operators.InTurn(noise.gaussian()),
        accept=accept.always(),
        mutable=True,
    )
    params = {"first": {"w": jnp.ones([2, 3]), "b": jnp.ones(3)}, "second": {"w": jnp.ones([2, 3])}}
    state = tx.init(params)
    for moved in ("first", "second", "first"):
        updates, state = tx.update(params, state, params, value_fn=optax.tree.sum)
        for layer, leaves in updates.items():
            assert all((leaf != 0).all() == (layer == moved) for leaf in leaves.values())


@pytest.mark.parametrize("accepted", [False, True])
def test_sigma_follows_success(accepted):
    own = operators.BySuccess(noise.gaussian(), accepted=accepted)
    tx = evolve(optax.sgd(0.0), evolve_every=1, sigma=0.1, noise=own, accept=accept.improved())
    params = {"x": jnp.ones(3)}
    state = tx.init(params)
    sigmas = []
    for value_fn in (lambda p: -jnp.sum(p["x"]), lambda p: jnp.sum((p["x"] - 1) ** 2)) * 2:
        _, state = tx.update(params, state, params, value_fn=value_fn)
        sigmas.append(state.info.sigma)
    growth = math.exp(operators.GROWTH)
    assert sigmas == pytest.approx([0.1, 0.1 * growth, 0.1, 0.1 * growth])


def test_noise_by_moments_is_as_large_in_all_and_larger_where_they_are_smaller():
    leaf, read = jnp.ones(4), jnp.array([0.0, 0.1, 1.0, 10.0])
    std = operators.ByMoments().std(leaf, jnp.float32(0.1), read)
    assert (jnp.diff(std) < 0).all()
    assert jnp.sqrt(jnp.mean(std**2)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("metric", presets.metric(2000, share=0.69, window=(0, 1), samples=0.5)),
        ("safe", presets.safe()),
        ("global_adaptive", presets.global_search(1.0, 10)),
    ],
)
def test_the_methods_named_for_presets_run_them(name, preset):
    settings = METHODS[name].settings(np.random.default_rng(0))
    assert RULES[settings["accept"]] == preset["accept"]
    names = {"interval": "evolve_every", "generations": "generations"}
    for ours, theirs in names.items():
        assert settings[ours] == preset.get(theirs, 1)
    assert preset["antithetic"]
    assert preset["recombine"] == recombine.centered_rank()
    assert settings["population"] == preset["population_size"]


def test_a_record_goes_on_where_it_stood(tmp_path):
    store, method, runs = Store(tmp_path), METHODS["adam"], []
    small = Effort(trials=2, tune_seeds=1, seeds=2, share=0.01, past_edges=False)
    record = complete(method, TOY, store, small)
    assert [len(trial["scores"]) for trial in record["trials"]] == [1, 1]
    assert len(record["scores"]) == 2
    again = complete(method, TOY, store, small._replace(seeds=3), lambda: runs.append(1))
    assert again["trials"] == record["trials"]
    assert again["scores"][:2] == record["scores"]
    assert len(again["scores"]) == 3
    assert len(runs) == 2 + 3
    # Another machine draws settings that differ in their last digit: they are the same trials.
    for trial in again["trials"]:
        rate = trial["settings"]["learning_rate"]
        trial["settings"] = {**trial["settings"], "learning_rate": float(np.nextafter(rate, 1))}
        trial["scores"] = [7.0]
    store.save(TOY.name, method.name, again)
    assert complete(method, TOY, store, small)["trials"] == again["trials"]


@pytest.mark.parametrize(
    ("best", "others", "moved"),
    [
        ({"sigma": 0.1}, [{"sigma": 0.2}], {"sigma": 0.05}),
        ({"population": 64}, [{"population": 16}], {"population": 128}),
        ({"gamma": 0.99}, [{"gamma": 0.95}], {"gamma": 0.995}),
        # One at a time, the first at an edge.
        (
            {"sigma": 0.2, "samples": 16, "interval": 5},
            [
                {"sigma": 0.1, "samples": 8, "interval": 20},
                {"sigma": 0.4, "samples": 8, "interval": 20},
            ],
            {"sigma": 0.2, "samples": 32, "interval": 5},
        ),
        # Between others, not drawn, in no order, or nowhere to go.
        ({"sigma": 0.2}, [{"sigma": 0.1}, {"sigma": 0.4}], None),
        ({"population": 16}, [{"population": 16}], None),
        ({"decay": True, "noise": "a"}, [{"decay": False, "noise": "b"}], None),
        ({"population": 2, "quarters": 3}, [{"population": 4, "quarters": 1}], None),
        ({"entropy": 0.0}, [{"entropy": 0.003}], None),
        ({"restarts": 1}, [{"restarts": 2}], None),
    ],
)
def test_what_lies_beyond_an_edge(best, others, moved):
    found = edges.beyond(best, [best, *others])
    assert found == (None if moved is None else pytest.approx(moved))
    assert moved is None or [*map(type, found.values())] == [*map(type, best.values())]


def test_tuning_goes_on_until_the_best_lies_at_no_edge(tmp_path):
    store, small = Store(tmp_path), Effort(trials=2, tune_seeds=1, seeds=2, share=0.01)
    record = complete(METHODS["adam"], TOY, store, small)
    trials = [*record["trials"], *record["further"]]
    # Of two rates one is always an edge.
    assert len(record["trials"]) == 2 < len(trials)
    assert record["settings"] == min(trials, key=mean)["settings"]
    rates = [trial["settings"]["learning_rate"] for trial in trials]
    assert min(rates) < record["settings"]["learning_rate"] < max(rates)
    assert {**complete(METHODS["adam"], TOY, store, small), **record} == store.load("toy", "adam")
    # A preset keeps to what was drawn.
    assert "further" not in complete(METHODS["safe"], TOY, store, small)


def test_seeds_that_are_published_are_not_those_of_tuning():
    effort = Effort()
    published = range(FIRST_SEED, FIRST_SEED + effort.seeds)
    assert not set(published) & set(range(FIRST_TUNE_SEED, FIRST_TUNE_SEED + effort.tune_seeds))


def test_comparisons_count_pairs_and_bracket_the_median():
    rng = np.random.default_rng(1)
    theirs = rng.normal(size=30)
    ours = theirs - 0.5 + 0.1 * rng.normal(size=30)
    found = statistics.compare([*ours, 1.0, np.inf], [*theirs, 1.0, np.inf])
    assert (found.better, found.same, found.worse) == (30, 2, 0)
    assert found.low <= found.difference <= found.high < 0
    assert statistics.compare([1.0, 2.0], [1.0, 2.0]).low == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The records of the archive."""
    folder = tmp_path_factory.mktemp("records")
    archive.unpack(folder)
    return folder


def test_the_tables_shown_are_those_of_the_records(folder):
    document = report.README.read_text()
    problems = [make() for name, make in PROBLEMS.items() if (folder / name).exists()]
    store = Store(folder)
    shown = report.rewritten(document, list(report.sections(problems, store)))
    policies = [make() for make in POLICIES.values()]
    varied = report.with_varied(shown, report.varied([*problems, *policies], store))
    compared = list(selection.compared(problems, store))
    assert selection.with_rows(varied, compared) == document
    guide = decisions.GUIDE.read_text()
    assert decisions.with_rows(guide, decisions.decided(problems, store), store) == guide
    assert document.count("Adam + metric cycles") >= 2
    for path, text in overview.written(problems, store).items():
        assert path.read_text() == text, path.name


def test_random_ranks_end_higher_than_the_runs_without_cycles(folder):
    """As README says below its table."""
    problems = [make() for name, make in PROBLEMS.items() if (folder / name).exists()]
    found = overview.chosen(overview.pairs(problems, Store(folder)))
    assert len(found) == 6
    assert all(one.random > one.medians[0] for one in found)


def test_of_rules_for_sigma_the_one_that_finds_most_is_bold_and_then_the_lowest(tmp_path):
    store = Store(tmp_path)
    ends = {
        "a schedule, to a hundredth": [1e-4, 1e-4, 1e-4],
        "`sigma.path_length`": [1e-6, 1e-6, 1e-6],
        "`noise.separable`": [1e-9, 1e-9, 0.5],
        "`sigma.one_fifth`": [0.01, 2.0, 3.0],
    }
    assert ends.keys() == sigmas.WAYS.keys()
    for problem in sigmas.PROBLEMS.values():
        for way, name in sigmas.WAYS.items():
            store.save(problem, name, {"scores": ends[way]})
    columns = [[way, *[cell] * 3] for way, cell in zip(
        ends, ("0.0001; 3", "**1e-06; 3**", "1e-09; 2", "2; 0"), strict=True
    )]  # fmt: skip
    assert sigmas.rows(store) == columns


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_whole_and_says_what_it_was_measured_with(name, folder):
    record = json.loads((folder / name).read_text())
    assert {"jax", "jaxlib", "optax", "egd_optax"} <= record["versions"].keys()
    assert record["device"]["kind"]
    if not name.endswith("/time.json"):
        assert len(record["scores"]) == len(record["seconds"]) == Effort().seeds
        assert record["forwards"] <= record["budget"]


@pytest.mark.parametrize("name", RECORDS)
def test_no_baseline_was_tuned_to_the_edge_of_its_grid(name, folder):
    record, path = json.loads((folder / name).read_text()), Path(name)
    method = (SOLVERS if path.parent.name in POLICIES else METHODS).get(path.stem)
    if method is None or not method.past_edges or "trials" not in record:
        return
    trials = [*record["trials"], *record.get("further", [])]
    assert record["settings"] == min(trials, key=mean)["settings"]
    assert edges.beyond(record["settings"], [trial["settings"] for trial in trials]) is None


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The archive and its summary, copied to where a test may replace them."""
    for name in ("TRIALS", "SUMMARY"):
        copy = shutil.copy(getattr(archive, name), tmp_path)
        monkeypatch.setattr(archive, name, Path(copy))
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*.json")}


def close(ours, theirs):
    """Whether two summaries agree; other versions of NumPy may add up in another order."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(close(ours[at], theirs[at]) for at in ours)
    return ours == theirs or math.isclose(ours, theirs, rel_tol=1e-9)


# Not the bytes of the archive, which depend on the release of liblzma.
def test_packing_what_was_unpacked_changes_nothing(folder, elsewhere):
    before = json.loads(archive.SUMMARY.read_text())
    problems = [make() for make in PROBLEMS.values()]
    archive.pack(folder, problems)
    packed = archive.TRIALS.read_bytes()
    archive.unpack(elsewhere / "records")
    assert contents(elsewhere / "records") == contents(folder)
    archive.pack(elsewhere / "records", problems)
    assert archive.TRIALS.read_bytes() == packed
    after = json.loads(archive.SUMMARY.read_text())
    assert after["trials"]["sha256"] == hashlib.sha256(packed).hexdigest()
    for name in before.keys() - {"trials"}:
        assert close(after[name], before[name])


def test_a_folder_goes_on_from_the_archive_that_there_is(elsewhere):
    working = elsewhere / "records"
    archive.resume(working)
    whole = contents(working)
    assert len(whole) == len(RECORDS)
    # Left half unpacked: everything comes back.
    (working / archive.MARK).unlink()
    (working / RECORDS[0]).unlink()
    archive.resume(working)
    assert contents(working) == whole
    # A record that a run has changed stays, and is packed.
    (working / RECORDS[0]).write_text(json.dumps(json.loads(whole[RECORDS[0]])))
    changed = contents(working)
    archive.resume(working)
    archive.pack(working, [])
    archive.resume(working)
    assert contents(working) == changed
    # Another archive was checked out in the meantime.
    shutil.copy(RESULTS / archive.TRIALS.name, archive.TRIALS)
    with pytest.raises(ValueError, match="goes on from another quality_trials.tar.xz"):
        archive.resume(working)


def test_an_archive_of_another_commit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "TRIALS", tmp_path / archive.TRIALS.name)
    archive.TRIALS.write_bytes((RESULTS / archive.TRIALS.name).read_bytes() + b"more")
    with pytest.raises(
        ValueError, match="must have the checksum [0-9a-f]{64} of quality.json, got"
    ):
        archive.unpack(tmp_path / "records")


def test_results_weigh_little():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    kept = [path for path in files if RESULTS / "quality" not in path.parents]  # of a run, ignored
    assert len(kept) <= 30
    assert sum(path.stat().st_size for path in kept) <= 1_000_000
    assert all(path.stat().st_size < 200_000 for path in kept if path.suffix == ".png")
    assert not [path for path in kept if path.suffix == ".svg"]


def test_the_summary_says_what_was_measured_with_what():
    summary = json.loads(archive.SUMMARY.read_text())
    assert summary["device"]
    assert all({"jax", "jaxlib", "optax"} <= versions.keys() for versions in summary["versions"])
    assert summary["scores"].keys() == PROBLEMS.keys()
    for methods in summary["scores"].values():
        assert methods
        assert all(one["date"] and one["seeds"] == Effort().seeds for one in methods.values())


@pytest.mark.parametrize(("problem", "method"), [("diabetes", "sgd"), ("friedman", "adam")])
def test_a_seed_without_cycles_is_reproduced(problem, method):
    run = reproduce.reproduce(problem, method, FIRST_SEED + 3)
    np.testing.assert_allclose(run.score, run.archived, rtol=1e-3)
    assert "should agree" in reproduce.told(run)


def test_a_seed_with_cycles_is_run_and_told_apart():
    run = reproduce.reproduce("diabetes", "safe", FIRST_SEED)
    assert np.isfinite([run.score, run.archived]).all()
    assert "need not agree" in reproduce.told(run)


@pytest.mark.parametrize(
    "run", [("no", "sgd", 2000), ("diabetes", "no", 2000), ("diabetes", "sgd", 1999),
            ("diabetes", "straight_through", 2000)]
)  # fmt: skip
def test_what_the_archive_lacks_is_named(run):
    with pytest.raises(ValueError, match="no |must be one of"):
        reproduce.reproduce(*run)


def test_problems_and_methods_have_names_in_words():
    assert {*METHODS, *SOLVERS} <= names.METHODS.keys()
    assert {*PROBLEMS, *POLICIES} <= names.PROBLEMS.keys()
    assert len(set(names.METHODS.values())) == len(names.METHODS)
