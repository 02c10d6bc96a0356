"""Plain Python as fitness: called once for each evaluation, wherever and however these run."""

import inspect
import logging
import subprocess
import sys
import threading
import time

import chex
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
from programs_test import compilations
import pytest
from rules import Finite
from sklearn.metrics import roc_auc_score

from egd_optax import Execution, accept, evolve, noise
from egd_optax.callback import host_value_fn

TARGET = 0.3
SMALL = {"w": jnp.linspace(1.0, 2.0, 15).reshape(3, 5), "b": jnp.linspace(-1.0, 1.0, 4)}
# One leaf is handed over in pieces, the last of them smaller.
LARGE = {"w": jnp.linspace(0.0, 1.0, 80 * 700).reshape(80, 700), "b": jnp.linspace(-1.0, 1.0, 4)}
STEPS = 2
PLAIN, WHOLE = Execution(), PartitionSpec()


def loss(params, xp=np):
    return sum(xp.mean((leaf - TARGET) ** 2) for leaf in params.values())


class Counted:
    """A function of NumPy that keeps what it was called with."""

    def __init__(self, fn=loss):
        self.fn, self.calls, self.lock = fn, [], threading.Lock()
        self.__signature__ = inspect.signature(fn)

    def __call__(self, params, **kwargs):
        with self.lock:
            self.calls.append((jax.tree.map(np.array, params), kwargs))
        return self.fn(params, **kwargs)


def optimizer(execution=PLAIN, **kwargs):
    settings = {"evolve_every": 1, "population_size": 8, "sigma": 0.3, **kwargs}
    return evolve(optax.sgd(0.1), execution=execution, **settings)


def step_of(tx, value_fn, **extra):
    def step(params, state):
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, **extra)
        return optax.apply_updates(params, updates), state

    return step


def run(value_fn, tx, params=SMALL, wrap=jax.jit, steps=STEPS, **extra):
    """Parameters and state after some steps."""
    step, state = wrap(step_of(tx, value_fn, **extra)), tx.init(params)
    for _ in range(steps):
        # One at a time: XLA:CPU runs out of threads where steps that communicate pile up.
        params, state = jax.block_until_ready(step(params, state))
    return params, state


def scanned(step):
    def steps(params, state):
        def body(carry, _):
            return step(*carry), None

        return lax.scan(body, (params, state), None, length=STEPS)[0]

    done = []

    def once(params, state):  # all steps in the first call
        done.append(True)
        return jax.jit(steps)(params, state) if len(done) == 1 else (params, state)

    return once


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def mapped(check_vma=True):
    whole = PartitionSpec()

    def wrap(step):
        specs = {"in_specs": whole, "out_specs": whole, "check_vma": check_vma}
        return jax.jit(jax.shard_map(step, mesh=mesh_of(), **specs))

    return wrap


BATCHES = Execution(candidate_batch_size=3)
POP = {"execution": Execution(population_axis="d", mesh=mesh_of()), "population_size": 12}
PAIRS = {
    "execution": Execution(population_axis="d", mesh=mesh_of(), candidate_batch_size=2),
    "population_size": 18,
    "antithetic": True,
}
# Where devices do not divide the members they evaluate some for nothing, and the child on each.
ON_ONE = {
    "one by one": {},
    "pairs": {"antithetic": True},
    "generations": {"generations": 2, "sigma": 0.1},
    "low rank": {"noise": noise.low_rank()},
    "in batches": {"execution": BATCHES},
    "pairs in batches": {"execution": Execution(candidate_batch_size=4), "antithetic": True},
    "in pieces": {"params": LARGE},
    "batches in pieces": {"params": LARGE, "execution": BATCHES},
    "scan": {"wrap": scanned},
    "outside of jit": {"wrap": lambda step: step},
}
ON_EIGHT = {
    "replicated": {"spec": PartitionSpec()},
    "sharded": {"spec": PartitionSpec("d")},
    "members": {"spec": PartitionSpec(), **POP},
    "pairs": {"spec": PartitionSpec(), **PAIRS},
    "members in shard_map": {**POP, "execution": Execution(population_axis="d"), "wrap": mapped()},
    "members unchecked": {
        **POP, "execution": Execution(population_axis="d"), "wrap": mapped(check_vma=False),
    },
    "alike in shard_map": {"execution": Execution(axis_name="d"), "wrap": mapped()},
}  # fmt: skip


def on_eight(value_fn, spec=WHOLE, kind=AxisType.Auto, **kwargs):
    mesh = mesh_of(kind)
    tx, wrap = (
        optimizer(**{k: v for k, v in kwargs.items() if k != "wrap"}),
        kwargs.get("wrap", jax.jit),
    )
    specs = {"w": spec, "b": PartitionSpec()}
    shardings = {name: NamedSharding(mesh, each) for name, each in specs.items()}
    return run(value_fn, tx, jax.device_put(LARGE, shardings), wrap)


def assert_called_and_found(fn, result, expected):
    """As often as `evaluations` says; and what NumPy finds is what JAX finds."""
    params, state = result
    assert len(fn.calls) == STEPS * int(state.info.evaluations)
    chex.assert_trees_all_close(*jax.device_get((params, expected[0])), rtol=1e-5)
    chex.assert_trees_all_close(*jax.device_get((state.info, expected[1].info)), rtol=1e-5)
    assert bool(state.info.accepted)


def in_jax(params):
    return loss(params, jnp)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("settings", ON_ONE.values(), ids=ON_ONE)
def test_one_call_for_each_evaluation(settings):
    kwargs = {**settings}
    params, wrap = kwargs.pop("params", SMALL), kwargs.pop("wrap", jax.jit)
    fn, tx = Counted(), optimizer(**kwargs)
    result = run(host_value_fn(fn), tx, params, wrap)
    assert_called_and_found(fn, result, run(in_jax, tx, params))
    assert all(
        jax.tree.map(np.shape, seen) == jax.tree.map(np.shape, params) for seen, _ in fn.calls
    )


@pytest.mark.wide
@pytest.mark.parametrize("settings", ON_EIGHT.values(), ids=ON_EIGHT)
def test_one_call_for_each_evaluation_on_eight_devices(settings):
    fn = Counted()
    result = on_eight(host_value_fn(fn), **settings)
    kwargs = {k: v for k, v in settings.items() if k not in ("spec", "wrap", "execution")}
    assert_called_and_found(fn, result, run(in_jax, optimizer(**kwargs), LARGE))


@pytest.mark.wide
@pytest.mark.parametrize(
    "settings", [{"spec": PartitionSpec("d")}, PAIRS], ids=["sharded", "pairs"]
)
def test_explicit_axes(settings):
    fn = Counted()
    kwargs = {k: v for k, v in settings.items() if k not in ("spec", "execution")}
    if "execution" in settings:
        execution = Execution(population_axis="d", candidate_batch_size=2)
        settings = {**settings, "execution": execution}
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        result = on_eight(host_value_fn(fn), kind=AxisType.Explicit, **settings)
    assert_called_and_found(fn, result, run(in_jax, optimizer(**kwargs), LARGE))


@pytest.mark.wide
@pytest.mark.parametrize("settings", ON_EIGHT.values(), ids=ON_EIGHT)
def test_devices_agree_on_what_is_noisy(settings):
    draw = np.random.default_rng(0).normal
    params, state = on_eight(
        host_value_fn(lambda p: loss(p) + draw()), accept=accept.best(), **settings
    )
    for leaf in jax.tree.leaves((params, state)):
        if leaf.is_fully_replicated:
            shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            chex.assert_trees_all_equal(*shards)


@pytest.mark.wide
def test_each_device_calls_for_its_own_samples():
    fn = Counted(lambda params, batch: np.mean((params["b"].sum() - batch) ** 2))
    batch = jnp.arange(16.0)
    tx = optimizer(Execution(axis_name="d"))
    one_device, state = run(
        lambda p, batch: jnp.mean((p["b"].sum() - batch) ** 2), optimizer(), SMALL, batch=batch
    )

    def step(params, state, batch):
        return step_of(tx, host_value_fn(fn), batch=batch)(params, state)

    whole, divided = PartitionSpec(), PartitionSpec("d")
    step = jax.jit(
        jax.shard_map(step, mesh=mesh_of(), in_specs=(whole, whole, divided), out_specs=whole)
    )
    params, states = SMALL, tx.init(SMALL)
    for _ in range(STEPS):
        params, states = jax.block_until_ready(step(params, states, batch))
    chex.assert_trees_all_close(jax.device_get(params), jax.device_get(one_device), rtol=1e-5)
    assert len(fn.calls) == 8 * STEPS * int(state.info.evaluations)
    assert {kwargs["batch"].shape for _, kwargs in fn.calls} == {(2,)}


@pytest.mark.wide
def test_a_guard_is_called_for_what_it_judges():
    fn, guard = Counted(), Counted()
    judge = host_value_fn(guard)
    run(host_value_fn(fn), optimizer(), accept_value_fn=judge)
    assert len(fn.calls) == STEPS * 9
    assert len(guard.calls) == STEPS * 3
    guard.calls.clear()
    settings = {**POP, "execution": Execution(population_axis="d")}
    run(
        host_value_fn(fn),
        optimizer(**settings),
        wrap=mapped(check_vma=False),
        accept_value_fn=judge,
    )
    assert len(guard.calls) == STEPS * 3


def test_nothing_is_dropped_or_taken_for_another():
    # Members that are all the same, and a program that returns none of what they are worth.
    fn = Counted()
    tx = optimizer(sigma=0.0, accept=Finite())
    value_fn = host_value_fn(fn)
    jax.block_until_ready(jax.jit(lambda p: step_of(tx, value_fn)(p, tx.init(p))[0])(SMALL))
    assert len(fn.calls) == 9


# Members that come together.


@pytest.mark.wide
@pytest.mark.parametrize("where", ["batches", "pairs on eight devices"])
def test_a_batched_function_has_one_call_for_all(where):
    calls = []

    def fn(params, offset):
        calls.append(jax.tree.map(np.shape, params))
        assert offset.shape == ()
        # A leaf that does not mutate is there for each of the members too.
        return (
            sum(((leaf - TARGET) ** 2).reshape(len(leaf), -1).mean(1) for leaf in params.values())
            + offset
        )

    settings = {"execution": BATCHES} if where == "batches" else PAIRS
    tx = optimizer(mutable={"w": True, "b": False}, **settings)
    value_fn = host_value_fn(fn, batched=True)
    result = run(value_fn, tx, offset=np.float32(1))
    expected = run(
        lambda p: in_jax(p) + 1,
        optimizer(
            mutable={"w": True, "b": False},
            **{k: v for k, v in settings.items() if k != "execution"},
        ),
    )
    chex.assert_trees_all_close(*jax.device_get((result, expected)), rtol=1e-5)
    sizes = [shapes["w"][0] for shapes in calls]
    assert all(
        shapes == {"w": (size, 3, 5), "b": (size, 4)}
        for shapes, size in zip(calls, sizes, strict=True)
    )
    # Three batches and the child; or the parent, nine pairs, two on each device, and the child.
    per_step = [3, 3, 2, 1] if where == "batches" else [1, 10, 8, 1]
    assert sizes == STEPS * per_step


@pytest.mark.wide
def test_workers_call_at_the_same_time():
    def simulate(params):
        time.sleep(0.05)
        return loss(params)

    def seconds(workers):
        tx = optimizer(Execution(candidate_batch_size=16), population_size=16)
        step = jax.jit(step_of(tx, host_value_fn(simulate, workers=workers)))
        state = tx.init(SMALL)
        jax.block_until_ready(step(SMALL, state))
        start = time.perf_counter()
        result = jax.block_until_ready(step(SMALL, state))
        return time.perf_counter() - start, result

    (one, expected), (eight, found) = seconds(None), seconds(8)
    chex.assert_trees_all_equal(found, expected)
    assert one > 4 * eight


@pytest.mark.wide
@pytest.mark.parametrize("workers", [None, 2])
def test_no_more_calls_at_a_time_than_workers(workers):
    running, most = [], []

    def simulate(params):
        running.append(True)
        most.append(len(running))
        time.sleep(0.002)
        running.pop()
        return loss(params)

    settings = {**POP, "execution": Execution(population_axis="d")}
    for wrap, kwargs in ((mapped(), settings), (jax.jit, {"execution": BATCHES})):
        run(host_value_fn(simulate, workers=workers), optimizer(**kwargs), wrap=wrap, steps=1)
    assert max(most) == (workers or 1)


# What is minimised.


@pytest.mark.wide
def test_a_metric_of_scikit_learn_is_minimised():
    inputs = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    labels = inputs[:, 0] > 0

    def metric(params):
        return 1 - roc_auc_score(labels, inputs @ params)

    start = jnp.array([0.1, 1.0, -1.0])
    params, state = run(host_value_fn(metric), optimizer(), start, steps=25)
    assert metric(np.asarray(params)) < 0.5 * metric(np.asarray(start))
    np.testing.assert_allclose(metric(np.asarray(params)), state.info.best_fitness, rtol=1e-5)


def test_a_process_that_crashes_on_some_members():
    program = "import sys; x = float(sys.argv[1]); sys.exit(3) if x > 1.02 else print(x * x)"
    codes = []

    def simulate(params):
        command = [sys.executable, "-S", "-c", program, str(params[0])]
        done = subprocess.run(command, capture_output=True, text=True)
        codes.append(done.returncode)
        done.check_returncode()
        return float(done.stdout)

    tx = optimizer(Execution(candidate_batch_size=4))
    params, state = run(host_value_fn(simulate, workers=2), tx, jnp.ones(2), steps=1)
    assert set(codes) == {0, 3}
    assert len(codes) == 9
    assert state.info.best_fitness < state.info.parent_fitness == 1
    assert params[0] < 1


# What goes wrong.


def failing(error):
    def fn(params):
        if params["w"][0, 0] > 1:  # the parent is at 1
            raise error
        return loss(params)

    return fn


@pytest.mark.wide
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("mine"), subprocess.TimeoutExpired("simulate", 5)], ids=repr
)
def test_an_error_is_the_worst_fitness_and_logged(error, caplog):
    worst = lambda p: jnp.where(p["w"][0, 0] > 1, jnp.inf, in_jax(p))  # noqa: E731
    with caplog.at_level(logging.WARNING, logger="egd_optax.callback"):
        result = run(host_value_fn(failing(error)), optimizer(), steps=1)
    chex.assert_trees_all_close(result, run(worst, optimizer(), steps=1), rtol=1e-5)
    assert caplog.records
    for record in caplog.records:
        assert record.name == "egd_optax.callback"
        assert record.exc_info[1] is error
    assert "in fn" in caplog.text


def test_a_failed_batch_is_the_worst(caplog):
    def fn(params):
        raise RuntimeError("mine")

    params, state = run(host_value_fn(fn, batched=True), optimizer(BATCHES), steps=1)
    chex.assert_trees_all_equal(params, SMALL)
    assert state.info.best_fitness == np.inf
    assert len(caplog.records) == 4


@pytest.mark.wide
@pytest.mark.parametrize("wrap", [jax.jit, lambda step: step], ids=["jit", "outside"])
def test_an_error_is_raised_where_that_is_asked_for(wrap):
    value_fn = host_value_fn(failing(ZeroDivisionError("mine")), on_error="raise")
    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError: mine"):
        run(value_fn, optimizer(), wrap=wrap)
    params, _ = run(host_value_fn(loss), optimizer(), wrap=wrap)  # nothing is left behind
    assert loss(params) < loss(SMALL)


@pytest.mark.wide
@pytest.mark.parametrize(
    "settings", [ON_EIGHT["sharded"], ON_EIGHT["members"]], ids=["sharded", "members"]
)
def test_all_devices_raise_what_one_of_them_met(settings):
    def fn(params):
        raise ZeroDivisionError("mine")

    with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError: mine"):
        on_eight(host_value_fn(fn, on_error="raise"), **settings)
    on_eight(host_value_fn(loss), **settings)  # no device waits for another


@pytest.mark.crossed(1)
@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf, 1e300], ids=str)
def test_what_is_not_finite_counts_as_worst(worst):
    fn = lambda p: worst if p["w"][0, 0] > 1 else float(loss(p))  # noqa: E731
    expected = lambda p: jnp.where(p["w"][0, 0] > 1, jnp.inf, in_jax(p))  # noqa: E731
    result = run(host_value_fn(fn), optimizer(), steps=1)
    chex.assert_trees_all_close(result, run(expected, optimizer(), steps=1), rtol=1e-5)


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("returned", "batched", "message"),
    [
        (None, False, "TypeError: `fn` must return one real number of at least float32, got None"),
        ((0.0, 1), False, r"ValueError: `fn` must return one real .*got shape \(2,\): reduce"),
        (1j, False, "TypeError: `fn` must return one real number of at least float32, got 1j"),
        (np.float16(1), False, "TypeError: `fn` must return one real number of at least float32"),
        (0.0, True, r"ValueError: `fn` must return a vector .* \(3,\), got shape \(\)"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_fn_returns(returned, batched, message):
    value_fn = host_value_fn(lambda params: returned, batched=batched)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        run(value_fn, optimizer(BATCHES))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ([0.5], {}, TypeError, "`fn` must be a function of the parameters, got 0.5"),
        ([loss], {"batched": 1}, TypeError, "`batched` must be True or False, got 1"),
        ([loss], {"workers": 0}, ValueError, "`workers` must be at least 1, got 0"),
        ([loss], {"workers": 2.0}, TypeError, "`workers` must be a Python int, got 2.0"),
        ([loss], {"workers": 2, "batched": True}, ValueError, "`workers` must be left out.*2"),
        ([loss], {"aux": {"steps": "3"}}, TypeError, "`aux` must be a pytree of arrays .*'3'"),
        ([loss], {"on_error": "ignore"}, ValueError, '`on_error` must be "worst" or "raise", got' ),
    ],
)  # fmt: skip
def test_settings(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        host_value_fn(*args, **kwargs)


# What comes beside the fitness.

AUX = {"steps": 0, "moments": np.zeros(2, np.float32)}


def simulated(params):
    """What a simulator knows beside the fitness: how long it took, and where it ended."""
    first = params["w"][0, 0]
    beside = {"steps": 3 + int(first > 1), "moments": np.array([first, first**2])}
    return loss(params), beside


def simulated_in_jax(params):
    first = params["w"][0, 0]
    beside = {"steps": 3 + (first > 1).astype(int), "moments": jnp.array([first, first**2])}
    return loss(params, jnp), beside


def assert_aux_agrees(result, expected):
    chex.assert_trees_all_close(*jax.device_get((result[1].info, expected[1].info)), rtol=1e-5)
    evaluations = int(result[1].info.evaluations)
    assert 3 * evaluations <= int(result[1].info.aux.total["steps"]) <= 4 * evaluations


@pytest.mark.crossed(1)
@pytest.mark.parametrize("settings", ON_ONE.values(), ids=ON_ONE)
def test_aux_is_what_python_returned(settings):
    kwargs = {**settings}
    params, wrap = kwargs.pop("params", SMALL), kwargs.pop("wrap", jax.jit)
    tx = optimizer(aux=AUX, **kwargs)
    result = run(host_value_fn(simulated, aux=AUX, workers=2), tx, params, wrap)
    assert_aux_agrees(result, run(simulated_in_jax, tx, params))


@pytest.mark.wide
@pytest.mark.parametrize("settings", ON_EIGHT.values(), ids=ON_EIGHT)
def test_aux_on_eight_devices(settings):
    result = on_eight(host_value_fn(simulated, aux=AUX), aux=AUX, **settings)
    expected = on_eight(simulated_in_jax, aux=AUX, **settings)
    chex.assert_trees_all_close(*jax.device_get((result[1].info, expected[1].info)), rtol=1e-5)


@pytest.mark.wide
def test_aux_of_all_members_at_once():
    tx = optimizer(BATCHES, population_size=7, aux=AUX)

    def of_each(params):
        members = [jax.tree.map(lambda leaf: leaf[i], params) for i in range(len(params["b"]))]  # noqa: B023
        values, beside = zip(*map(simulated, members), strict=True)
        return np.stack(values), jax.tree.map(lambda *leaves: np.stack(leaves), *beside)

    result = run(host_value_fn(of_each, batched=True, aux=AUX), tx)
    assert_aux_agrees(result, run(simulated_in_jax, tx))


def test_aux_of_a_member_that_fails_is_zero():
    def fn(params):
        if params["w"][0, 0] != 1:  # as the parent has it
            raise ZeroDivisionError("mine")
        return simulated(params)

    _, state = run(host_value_fn(fn, aux=AUX), optimizer(aux=AUX, accept=accept.best()), steps=1)
    assert int(state.info.evaluations) == 9
    assert state.info.best_fitness == state.info.parent_fitness
    # All mutants failed, so that the child is the parent once more.
    parent, best, child, total = (each["steps"] for each in state.info.aux)
    assert (parent, best, child, total) == (3, 3, 3, 6)


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"TypeError: `fn` must return \(fitness, aux\) where `aux` is given, got 1.0"),
        ((1.0, {"steps": 1}), "ValueError: `aux` must be like what `fn` returns .*moments"),
        ((1.0, {**AUX, "steps": 0.5}), r"ValueError: .* int32 of shape \(\) for float64 of shape"),
        ((1.0, {**AUX, "moments": 0}), r"ValueError: .*float32 of shape \(2,\) for int64 of shape"),
    ],
    ids=repr,
)  # fmt: skip
def test_aux_that_is_not_like_the_example(returned, message):
    value_fn = host_value_fn(lambda params: returned, aux=AUX)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        run(value_fn, optimizer(aux=AUX))


# Arguments.


def test_arguments_are_those_that_fn_names():
    def fn(params, batch, generation, name, scale=1.0):
        seen.append((batch, generation, name, scale))
        return loss(params)

    seen = []
    value_fn = host_value_fn(fn)
    assert inspect.signature(value_fn) == inspect.signature(fn)
    assert value_fn.__name__ == "fn"
    batch = {"x": jnp.arange(3), "y": np.ones((2, 2))}
    tx = optimizer(generations=2)
    for wrap in (jax.jit, lambda step: step):
        run(value_fn, tx, wrap=wrap, steps=1, batch=batch, name="valid", other=object())
        assert [int(generation) for _, generation, _, _ in seen] == [0] * 9 + [1] * 9
        for given, generation, name, scale in seen:
            chex.assert_trees_all_equal(given, jax.device_get(batch))
            assert all(isinstance(leaf, np.ndarray) for leaf in [*given.values(), generation])
            assert (name, scale) == ("valid", 1.0)
        seen.clear()


def test_arrays_are_those_of_numpy_with_their_dtypes_and_all_their_numbers():
    params = {
        "bf16": jnp.linspace(0.0, 1.0, 100_000, dtype=jnp.bfloat16).reshape(100, 1000),
        "f16": jnp.ones(3, jnp.float16),
        "int": jnp.arange(60_000),
        "none": jnp.zeros((0, 3)),
        "one": jnp.float32(2.0),
    }
    fn = Counted(lambda params, key: float(params["one"] ** 2) + len(key))
    key = jax.random.key(3)
    run(host_value_fn(fn), optimizer(), params, steps=1, key=key)
    parent, kwargs = fn.calls[0]
    chex.assert_trees_all_equal(parent, jax.device_get(params))
    assert {name: leaf.dtype for name, leaf in parent.items()} == {
        name: leaf.dtype for name, leaf in params.items()
    }
    np.testing.assert_array_equal(kwargs["key"], jax.random.key_data(key))


@pytest.mark.parametrize("params", [SMALL, LARGE], ids=["at once", "in pieces"])
def test_a_call_runs_no_program_of_jax(params):
    # Such a program could wait for the one that waits for the call.
    threads = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            threads.append(threading.get_ident())

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(host_value_fn(loss), optimizer(), params, steps=1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert set(threads) == {threading.get_ident()}


def test_float64():
    with jax.enable_x64(True):
        tiny = lambda p: 1 + 1e-12 * float(p[0])  # noqa: E731
        _, state = run(host_value_fn(tiny), optimizer(), jnp.ones(3), steps=1)
        assert state.info.best_fitness.dtype == jnp.float64
        assert state.info.best_fitness < state.info.parent_fitness


# Outside of jit.


@pytest.mark.crossed(1)
@pytest.mark.on_cpu
@pytest.mark.parametrize("params", [SMALL, LARGE], ids=["at once", "in pieces"])
def test_a_second_cycle_compiles_nothing(params):
    def fn(params, batch, name):
        return loss(params) + batch.sum() + len(name)

    tx, value_fn = optimizer(BATCHES), host_value_fn(fn)
    step = lambda step: step  # noqa: E731
    run(value_fn, tx, params, step, batch=np.ones(2), name="first")
    with compilations() as found:
        run(value_fn, tx, params, step, batch=np.zeros(2), name="first")
    assert not found


@pytest.mark.wide
def test_another_function_or_setting_is_another_program():
    def made(number):
        return host_value_fn(lambda params: float(np.sum((params["b"] - number) ** 2)))

    def named(params, number):
        return float(np.sum((params["b"] - number) ** 2))

    def landed(tx, value_fn, **extra):
        return run(value_fn, tx, wrap=lambda step: step, steps=1, **extra)[0]

    tx, value_fn = optimizer(), host_value_fn(named)
    for number in (1.0, 5.0):
        expected = landed(optimizer(), lambda p, number=number: jnp.sum((p["b"] - number) ** 2))
        chex.assert_trees_all_close(landed(tx, made(number)), expected, rtol=1e-5)
        chex.assert_trees_all_close(landed(tx, value_fn, number=number), expected, rtol=1e-5)


# What to write instead.


@pytest.mark.parametrize(
    "value_fn",
    [
        lambda p: float(np.sum(np.asarray(p["w"]))),
        lambda p: float(p["w"].sum()),
        lambda p: 1.0 if p["w"].sum() > 0 else 0.0,
        lambda p: [0.0, 1.0][p["w"].sum().astype(int)],
    ],
    ids=["array", "number", "bool", "index"],
)
@pytest.mark.parametrize("wrap", [jax.jit, lambda step: step], ids=["jit", "outside"])
def test_what_needs_numbers_is_told_of_the_host(value_fn, wrap):
    with pytest.raises(Exception, match="[Tt]race|[Cc]oncret") as caught:
        run(value_fn, optimizer(), wrap=wrap)
    (note,) = [note for note in caught.value.__notes__ if "value_fn" in note]
    assert "egd_optax.callback.host_value_fn(fn)" in note


def test_a_callback_in_batches_is_told_of_the_missing_argument():
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    value_fn = lambda p: jax.pure_callback(lambda p: np.float32(loss(p)), shape, p)  # noqa: E731
    with pytest.raises(NotImplementedError) as caught:
        run(value_fn, optimizer(BATCHES))
    (note,) = [note for note in caught.value.__notes__ if "value_fn" in note]
    assert "`vmap_method=`" in note
    assert "egd_optax.callback.host_value_fn(fn)" in note


@pytest.mark.wide
def test_an_ensemble_is_told_to_take_turns():
    tx = optimizer()
    step = step_of(tx, host_value_fn(loss))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), SMALL)
    states = jax.vmap(tx.init)(many)
    with pytest.raises(NotImplementedError) as caught:
        jax.vmap(step)(many, states)
    assert any("`jax.lax.map`" in note for note in caught.value.__notes__)
    params, _ = jax.jit(lambda *args: lax.map(lambda each: step(*each), args))(many, states)
    first, _ = run(host_value_fn(loss), tx, steps=1)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], params), first, rtol=1e-5)


@pytest.mark.wide
@pytest.mark.parametrize("wrap", [jax.jit, lambda step: step], ids=["jit", "outside"])
@pytest.mark.parametrize(
    "value_fn",
    [lambda p: float(len(f"{p}")), lambda p: jnp.mean(jnp.full(3, float(len(f"{p}"))))],
    ids=["a number", "an array"],
)
def test_a_fitness_of_printed_parameters_is_warned_of(value_fn, wrap):
    with pytest.warns(UserWarning, match="the same for all members.*host_value_fn") as warned:
        run(value_fn, optimizer(), wrap=wrap)
    assert len(warned) == 1


@pytest.mark.wide
def test_only_parameters_that_mutate_count_as_used():
    tx = optimizer(mutable={"w": True, "b": False})
    with pytest.warns(UserWarning, match="no parameter that mutates is used"):
        run(lambda p: jnp.sum(p["b"]), tx)
    run(lambda p: jnp.sum(p["w"] > 0), tx)
