"""`noise.lattice`: integer leaves that evolve, against NumPy, and the promises of a cycle."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
from recorded import observed_by

from egd_optax import Execution, accept, ask_tell, evolve, noise, recombine

DTYPES = {"int8": jnp.int8, "int4": jnp.int4, "uint8": jnp.uint8}
LARGE = (182, 181)  # more than the library puts side by side with others
TARGET = 2.3
RANKS, BEST_HALF = recombine.centered_rank(), recombine.mean(0.5)


def integers(shape, dtype=jnp.int8, low=-6, high=7, seed=5):
    """Integers that are in the range of a dtype, some at its ends."""
    info = jnp.iinfo(dtype)
    drawn = np.random.default_rng(seed).integers(max(low, info.min), high + 1, shape)
    drawn.flat[:2] = int(info.min), int(info.max)
    return jnp.asarray(drawn, dtype)


def params_of(dtype=jnp.int8):
    """Integer leaves, a large one and a small one, beside floats and a counter."""
    draw = np.random.default_rng(5).normal
    return {
        "q": {"large": integers(LARGE, dtype), "small": integers((5, 3))},
        "scale": jnp.asarray(draw(1, 0.1, (4,)), jnp.float32),
        "steps": jnp.int32(7),
    }


MUTABLE = {"q": True, "scale": True, "steps": False}


def distance(params):
    """Of integers a sum of integers: a mean of floats may round otherwise in a batch."""
    scale = params.get("scale", jnp.zeros(1))
    squares = [jnp.square(leaf.astype(jnp.int32) - 2) for leaf in jax.tree.leaves(params["q"])]
    terms = [jnp.sum(each).astype(jnp.float32) / each.size for each in squares]
    return sum(terms) + jnp.mean((scale - TARGET) ** 2)


def optimizer(base=None, *, kind=None, mutable=MUTABLE, **settings):
    settings = {"sigma": 0.3, "recombine": BEST_HALF, "key": 3, "population_size": 8} | settings
    return evolve(
        optax.set_to_zero() if base is None else base,
        evolve_every=1, noise=noise.lattice() if kind is None else kind, mutable=mutable,
        **settings,
    )  # fmt: skip


@functools.cache
def step_of(tx, value_fn):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return step


def total(params):
    return jnp.sum(params["q"].astype(jnp.float32))


def train(tx, params, steps=3, state=None, value_fn=distance, step=None):
    step = step_of(tx, value_fn) if step is None else step
    state = tx.init(params) if state is None else state
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    return params, state


def assert_same_bits(found, expected):
    found, expected = jax.device_get(found), jax.device_get(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(np.asarray(left, np.float64), np.asarray(right, np.float64))


def wide(leaf):
    return np.asarray(leaf).astype(np.float64)


def number(leaf, residual):
    """The real number that a weight stands for, in steps."""
    return wide(leaf) + wide(residual) / 256


# The oracle.


def ranks_of(fitness):
    wins = (fitness[None] > fitness[:, None]).sum(1) - (fitness[None] < fitness[:, None]).sum(1)
    return wins / wins[wins > 0].sum()


def best_half_of(fitness):
    order = np.argsort(fitness, stable=True)
    return np.isin(np.arange(fitness.size), order[:4]) / 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("rule", ["ranks", "best"])
def test_a_generation_is_that_of_numpy(dtype, antithetic, rule):
    dtype, weights_of = DTYPES[dtype], {"ranks": ranks_of, "best": best_half_of}[rule]
    rate, info = 0.7, jnp.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    tx = optimizer(
        mutable=True, antithetic=antithetic, accept=accept.always(), es_optimizer=optax.sgd(rate),
        recombine={"ranks": RANKS, "best": BEST_HALF}[rule],
    )  # fmt: skip
    params = {"q": integers((9, 8), dtype)}
    state = tx.init(params)
    for _ in range(4):
        before = number(params["q"], state.strategy_state.residual["q"])
        asked, state = ask_tell.ask(tx, None, state, params)
        size = asked.ticket.size
        members = ask_tell.member(asked.ticket, asked.parent, np.arange(size))["q"]
        assert members.dtype == dtype
        parent, members = wide(params["q"]), wide(members)
        deviations = members - parent
        fitness = np.array([np.float32(np.mean((one - TARGET) ** 2)) for one in members])
        assert members.min() >= low
        assert members.max() <= high
        if antithetic:
            unclipped = (members[::2] > low) & (members[::2] < high)
            mirror = np.clip(parent - deviations[::2], low, high)
            np.testing.assert_array_equal(members[1::2][unclipped], mirror[unclipped])
        else:
            assert (members[0] == parent).all()
        step = rate * np.tensordot(weights_of(fitness), deviations, 1)
        child = np.clip(before + step, low, high)
        updates, state = ask_tell.tell(tx, asked, fitness, state, params)
        assert updates["q"].dtype == dtype
        params = optax.apply_updates(params, updates)
        assert params["q"].dtype == dtype
        residual = state.strategy_state.residual["q"]
        found = number(params["q"], residual)
        # The last digit of the fraction is rounded at random, up or down.
        assert np.abs(found - child).max() < 1 / 256 + 1e-5
        near = np.abs(child - np.floor(child) - 0.5) > 0.01
        np.testing.assert_array_equal(wide(params["q"])[near], np.round(child)[near])
        assert np.abs(wide(residual)).max() > 0


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_members_are_normal_numbers_rounded_at_random(sigma):
    tx = optimizer(mutable=True, sigma=sigma, population_size=2)
    params = {"q": jnp.zeros((300, 300), jnp.int8)}
    asked, _ = ask_tell.ask(tx, None, tx.init(params), params)
    found = wide(ask_tell.member(asked.ticket, asked.parent, 1)["q"]).ravel()
    random = np.random.default_rng(0)
    expected = np.floor(random.normal(0, sigma, found.size) + random.random(found.size))
    error = 4 * max(sigma, 0.3) / 300
    assert found.mean() == pytest.approx(0, abs=error)
    for steps in range(4):
        share = (np.abs(found) == steps).mean()
        assert share == pytest.approx((np.abs(expected) == steps).mean(), abs=0.012)


def test_a_deviation_is_in_steps_and_floats_have_gaussian_noise():
    params = {"q": jnp.zeros((200, 200), jnp.int8), "w": jnp.full((200, 200), 3.0)}
    tx = optimizer(kind=noise.lattice(steps_per_sigma=20.0), mutable=True, sigma=0.1)
    asked, _ = ask_tell.ask(tx, None, tx.init(params), params)
    member = ask_tell.member(asked.ticket, asked.parent, 1)
    assert np.std(wide(member["q"])) == pytest.approx(2.0, rel=0.03)
    plain = evolve(optax.set_to_zero(), sigma=0.1, key=3, mutable={"q": False, "w": True})
    asked, _ = ask_tell.ask(plain, None, plain.init(params), params)
    expected = ask_tell.member(asked.ticket, asked.parent, 1)
    assert_same_bits(member["w"], expected["w"])
    assert (np.asarray(expected["q"]) == 0).all()


# The range.


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int4, jnp.uint8, jnp.uint4, jnp.int2])
@pytest.mark.parametrize("end", ["min", "max"])
def test_members_and_children_stop_at_the_range_and_either_of_a_pair_turns_inwards(dtype, end):
    """They would wrap around, and a pair would be lost whose first member left the range."""
    value, towards = int(getattr(jnp.iinfo(dtype), end)), {"min": -1, "max": 1}[end]
    params = {"q": jnp.full((20, 20), value, dtype)}
    tx = optimizer(mutable=True, antithetic=True, accept=accept.always(), recombine=RANKS)
    asked, _ = ask_tell.ask(tx, None, tx.init(params), params)
    members = wide(ask_tell.member(asked.ticket, asked.parent, np.arange(8))["q"])
    inwards = (members - value) * towards
    assert (inwards <= 0).all()
    shares = (inwards < 0).mean((1, 2))
    assert (shares > 0.05).all(), shares
    drift = constant_drift(0.7 * towards)
    tx = optimizer(mutable=True, accept=accept.always(), es_optimizer=drift)
    params, state = train(tx, params, value_fn=total)
    assert (wide(params["q"]) == value).all()
    assert (wide(state.strategy_state.residual["q"]) * towards <= 0).all()


@pytest.mark.parametrize("bounds", [(-1, 1), (None, 0), (-2, None)])
def test_a_range_narrows_that_of_the_dtype(bounds):
    low, high = bounds
    params = {"q": jnp.zeros((6, 7), jnp.int4)}
    tx = optimizer(
        kind=noise.lattice(low, high), mutable=True, sigma=3.0, accept=accept.always(),
        es_optimizer=optax.sgd(5.0),
    )  # fmt: skip
    asked, _ = ask_tell.ask(tx, None, tx.init(params), params)
    members = wide(ask_tell.member(asked.ticket, asked.parent, np.arange(8))["q"])
    expected = -8 if low is None else low, 7 if high is None else high
    assert (members.min(), members.max()) == expected
    params, _ = train(tx, params, steps=5)
    assert wide(params["q"]).min() >= expected[0]
    assert wide(params["q"]).max() <= expected[1]


# The residual.


def constant_drift(by):
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g: jnp.full_like(g, by), grads))


def test_a_drift_of_a_tenth_of_a_step_moves_every_weight_after_ten_cycles():
    tx = optimizer(mutable=True, accept=accept.always(), es_optimizer=constant_drift(0.1))
    start = {"q": integers((6, 7), low=-5, high=5).at[0].set(0)}
    params, state, moved = start, None, []
    for _ in range(10):
        params, state = train(tx, params, 1, state, total)
        moved.append(float(np.mean(wide(params["q"]) - wide(start["q"]))))
    assert moved[3] == 0
    assert moved[9] == 1
    assert np.abs(wide(state.strategy_state.residual["q"])).max() < 10


def test_a_drift_below_the_last_digit_of_the_fraction_adds_up_on_average():
    tx = optimizer(mutable=True, accept=accept.always(), es_optimizer=constant_drift(0.0005))
    start = {"q": jnp.zeros((50, 50), jnp.int8)}

    @jax.jit
    def many(params, state):
        def one(carry, _):
            updates, state = tx.update(None, carry[1], carry[0], value_fn=total)
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(one, (params, state), None, 800)[0]

    params, state = many(start, tx.init(start))
    mean = number(params["q"], state.strategy_state.residual["q"]).mean()
    assert mean == pytest.approx(0.4, rel=0.02)


def test_the_state_takes_a_byte_a_weight():
    params = {"q": jnp.zeros((64, 32), jnp.int8), "w": jnp.ones(3)}
    plain = optimizer(mutable={"q": False, "w": True}).init(params)
    state = optimizer(mutable=True).init(params)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(each)) for each in (plain, state)]
    assert sizes[1] - sizes[0] == params["q"].size
    residual = state.strategy_state.residual
    assert residual["q"].dtype == jnp.int8
    assert isinstance(residual["w"], optax.MaskedNode)
    assert plain.strategy_state.residual == ()


@pytest.mark.parametrize("takes", ["improved", "best"])
def test_a_child_that_is_not_taken_leaves_its_fractions_where_it_moved_nothing(takes):
    """Else a step below one half of a lattice would never be taken: its child is the parent."""
    rule = {"improved": accept.improved(), "best": accept.best()}[takes]
    tx = optimizer(
        mutable=True, accept=rule, es_optimizer=optax.sgd(1.5), recombine=RANKS, sigma=0.1
    )
    seen, calls = [], []

    def score(params):
        calls.append(wide(params["q"]))
        # The parent comes first, and the child last: neither it nor a member is taken.
        return np.float32(len(calls))

    params = {"q": integers((20, 20))}
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=observed_by(score)))
    for _ in range(3):
        calls.clear()
        before = wide(state.strategy_state.residual["q"])
        updates, state = jax.block_until_ready(step(params, state))
        after = wide(state.strategy_state.residual["q"])
        assert (wide(updates["q"]) == 0).all()
        assert not state.info.accepted
        assert float(state.info.update_norm) == 0
        moved = calls[-1] != wide(params["q"])
        np.testing.assert_array_equal(after[moved], before[moved])
        assert (after[~moved] != before[~moved]).any()
        seen.append(moved.mean())
    assert 0 < max(seen) < 1


def test_no_finite_member_changes_no_fraction():
    tx = optimizer(mutable=True, es_optimizer=constant_drift(0.1), accept=accept.always())
    params, state = train(tx, {"q": integers((4, 5))}, 2)
    again, after = train(tx, params, 1, state, value_fn=lambda p: jnp.nan * jnp.sum(p["q"] * 1.0))
    assert_same_bits(again, params)
    assert_same_bits(after.strategy_state.residual, state.strategy_state.residual)


def test_a_step_that_is_not_finite_moves_no_integer():
    tx = optimizer(mutable=True, es_optimizer=constant_drift(jnp.nan), accept=accept.always())
    start = {"q": integers((4, 5))}
    params, state = train(tx, start, 2)
    assert_same_bits(params, start)
    assert (wide(state.strategy_state.residual["q"]) == 0).all()


# The promises of a cycle.

EXECUTIONS = {
    "host": {"memory": "host"},
    "replay": {"memory": "replay"},
    "batches": {"candidate_batch_size": 4},
}
CASES = {
    "best": {"accept": accept.best()},
    "ranks": {"accept": accept.improved(), "recombine": RANKS, "antithetic": True},
    "adam": {
        "accept": accept.always(),
        "recombine": RANKS,
        "antithetic": True,
        "es_optimizer": optax.adam(0.3),
    },
}


@functools.cache
def on_the_device(case, dtype, generations):
    tx = optimizer(generations=generations, execution=Execution(memory="device"), **CASES[case])
    return train(tx, params_of(DTYPES[dtype]))


@pytest.mark.exact
@pytest.mark.crossed(6)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "generations"), [("int8", 1), ("int4", 2), ("int8", 2)])
def test_the_bits_are_the_same_in_every_memory_and_in_batches(case, execution, dtype, generations):
    expected = on_the_device(case, dtype, generations)
    start = params_of(DTYPES[dtype])
    assert (wide(expected[0]["q"]["large"]) != wide(start["q"]["large"])).any()
    assert (wide(expected[0]["q"]["small"]) != wide(start["q"]["small"])).any()
    tx = optimizer(
        generations=generations, execution=Execution(**EXECUTIONS[execution]), **CASES[case]
    )
    assert_same_bits(train(tx, start), expected)


@pytest.mark.exact
@pytest.mark.parametrize("case", CASES)
def test_a_cycle_outside_of_jit_and_one_that_is_resumed_have_the_same_bits(case):
    expected, start = on_the_device(case, "int8", 2), params_of()
    tx = optimizer(generations=2, **CASES[case])
    params, state = train(tx, start, 1, step=step_of(tx, distance).__wrapped__)
    leaves, treedef = jax.tree.flatten((params, state))
    params, state = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    assert_same_bits(train(tx, params, 2, state), expected)


@pytest.mark.exact
@pytest.mark.parametrize("case", CASES)
def test_ask_and_tell_find_the_same_bits(case):
    expected, params = on_the_device(case, "int8", 2), params_of()
    tx = optimizer(generations=2, **CASES[case])
    state = tx.init(params)
    fitness_of = jax.jit(distance)
    for _ in range(3):
        asked, state = ask_tell.ask(tx, None, state, params)
        while isinstance(asked, ask_tell.Asked):
            found = [
                fitness_of(ask_tell.member(asked.ticket, asked.parent, at))
                for at in range(asked.ticket.size)
            ]
            asked, state = ask_tell.tell(tx, asked, jnp.stack(found), state, params)
        params = optax.apply_updates(params, asked)
    assert_same_bits(params, expected[0])
    assert_same_bits(state.strategy_state, expected[1].strategy_state)


@pytest.mark.parametrize("rule", ["best", "improved"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_point_that_is_taken_was_scored_to_the_bit(rule, antithetic):
    seen = {}

    def score(params):
        leaves = jax.tree.leaves(params)
        value = np.float32(sum(np.mean((wide(leaf) - TARGET) ** 2) for leaf in leaves))
        seen[value] = jax.tree.map(np.array, params)
        return value

    taken = {"best": accept.best(), "improved": accept.improved()}[rule]
    tx, params = optimizer(antithetic=antithetic, accept=taken, generations=2), params_of()
    state, count = tx.init(params), 0
    step = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=observed_by(score)))
    for _ in range(3):
        updates, state = jax.block_until_ready(step(params, state))
        params = optax.apply_updates(params, updates)
        value = score(jax.device_get(params))
        assert_same_bits(params, seen[value])
        count += bool(state.info.accepted)
        assert 0 <= float(state.info.update_norm) < 1
        assert (float(state.info.update_norm) > 0) == bool(state.info.accepted)
    assert count


def close_in_steps(found, expected):
    """The share of weights that differ at all; none may differ by more than the last digit."""
    share = []
    for name in ("large", "small"):
        left, right = (
            number(run[0]["q"][name], run[1].strategy_state.residual["q"][name])
            for run in (found, expected)
        )
        assert np.abs(left - right).max() <= 1 / 256
        share.append((left != right).mean())
    np.testing.assert_allclose(found[0]["scale"], expected[0]["scale"], atol=2e-5)
    return max(share)


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_share_the_members(case):
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))
    params = jax.device_put(params_of(), NamedSharding(mesh, PartitionSpec()))
    settings = CASES[case] | {"population_size": 16}
    tx = optimizer(execution=Execution(population_axis="pop", mesh=mesh), **settings)
    found = jax.device_get(train(tx, params))
    expected = jax.device_get(train(optimizer(**settings), params_of()))
    assert close_in_steps(found, expected) < 1e-3
    np.testing.assert_allclose(found[1].info.best_fitness, expected[1].info.best_fitness, rtol=2e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("case", CASES)
def test_leaves_may_be_divided_over_devices(case, axis_type):
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(axis_type,))
    rows = NamedSharding(mesh, PartitionSpec("fsdp", None))
    params = jax.device_put(params_of(), NamedSharding(mesh, PartitionSpec()))
    params["q"]["large"] = jax.device_put(params["q"]["large"], rows)
    tx = optimizer(**CASES[case])
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        found = train(tx, params, state=state)
    assert found[0]["q"]["large"].sharding.is_equivalent_to(rows, 2)
    residual = found[1].strategy_state.residual["q"]["large"]
    assert residual.sharding.is_equivalent_to(rows, 2)
    expected = jax.device_get(train(optimizer(**CASES[case]), params_of()))
    assert close_in_steps(jax.device_get(found), expected) < 1e-3


# Bases and gradients.


def gradients(kind, params):
    def loss(params):
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["q"].astype(jnp.float32))

    grads = jax.grad(loss, allow_int=True)(params)
    if kind == "zeros":
        return grads | {"q": jnp.zeros_like(params["q"])}
    return grads | {"q": None} if kind == "none" else grads


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int4])
@pytest.mark.parametrize("kind", ["float0", "zeros", "none"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_base_does_not_see_the_integers(base, kind, dtype):
    base = {"sgd": optax.sgd(0.1, momentum=0.9), "adamw": optax.adamw(0.1)}[base]
    params = {"w": jnp.ones(3), "q": integers((4, 5), dtype)}
    tx = evolve(base, evolve_every=2, noise=noise.lattice(), sigma=0.3, mutable=True)
    state, alone = tx.init(params), base.init({"w": params["w"]})
    value_fn = lambda p: jnp.sum((p["q"].astype(jnp.float32) - 1) ** 2)  # noqa: E731
    grads = gradients(kind, params)
    expected, _ = jax.jit(base.update)({"w": grads["w"]}, alone, {"w": params["w"]})
    step = lambda p, s, g: tx.update(g, s, p, value_fn=value_fn)  # noqa: E731
    step = step if kind == "float0" else jax.jit(step)
    updates, state = step(params, state, grads)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    assert updates["q"].dtype == dtype
    assert (wide(updates["q"]) == 0).all()
    idle, _ = tx.update(grads, state, params, evolve=False)
    assert idle["q"].dtype == dtype
    updates, after = step(optax.apply_updates(params, updates), state, grads)
    assert (wide(updates["q"]) != 0).any()
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, tx.init(params))


@pytest.mark.parametrize("kind", ["adam", "masked", "in parts"])
def test_a_counter_that_does_not_evolve_stays_with_its_base(kind):
    """Its gradient is float0, on which optax fails."""
    params = {"w": jnp.zeros(4, jnp.int8), "scale": jnp.ones(3), "calls": jnp.int32(7)}
    bases = {
        "adam": optax.adam(1e-2),
        "masked": optax.masked(optax.adam(1e-2), {"w": False, "scale": True, "calls": False}),
        "in parts": optax.multi_transform(
            {"moves": optax.adam(1e-2), "stays": optax.set_to_zero()},
            {"w": "stays", "scale": "moves", "calls": "stays"},
        ),
    }

    def loss(params):
        return jnp.sum((params["scale"] * (params["w"].astype(jnp.float32).sum() + 1.0)) ** 2)

    tx = evolve(
        bases[kind], evolve_every=1, noise=noise.lattice(),
        mutable={"w": True, "scale": True, "calls": False},
    )  # fmt: skip
    grads = jax.grad(loss, allow_int=True)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    after = optax.apply_updates(params, updates)
    assert after["calls"] == 7
    assert after["calls"].dtype == jnp.int32
    assert not jnp.array_equal(after["scale"], params["scale"])


def test_a_line_search_evaluates_all_leaves():
    base = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    params = {"w": jnp.ones(3), "q": integers((4, 5))}
    value_fn = lambda p: jnp.sum(p["w"] ** 2) + jnp.mean(p["q"] * 1.0)  # noqa: E731
    tx = evolve(base, evolve_every=1, noise=noise.lattice(), sigma=0.3, mutable=True)
    state = tx.init(params)
    value, grads = jax.value_and_grad(value_fn, allow_int=True)(params)
    updates, _ = tx.update(grads, state, params, value_fn=value_fn, value=value, grad=grads)
    assert value_fn(optax.apply_updates(params, updates)) < value


def test_an_idle_step_passes_the_fractions_on():
    tx = evolve(
        optax.set_to_zero(), evolve_every=2, noise=noise.lattice(), mutable=MUTABLE, sigma=0.3,
        accept=accept.always(),
    )  # fmt: skip
    params = params_of()
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=distance))
    for count in range(1, 5):
        before = state.strategy_state.residual
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        same = [
            bool((a == b).all())
            for a, b in zip(
                jax.tree.leaves(before), jax.tree.leaves(state.strategy_state.residual), strict=True
            )
        ]
        assert all(same) == (count % 2 == 1)


# What is refused, and what stays as it was.


def test_integers_stay_where_they_are_without_mutable():
    params = params_of()
    found, state = train(optimizer(mutable=None), params)
    assert_same_bits(found["q"], params["q"])
    assert state.strategy_state.residual == ()


def test_integers_that_another_noise_should_move_are_refused():
    tx = evolve(optax.set_to_zero(), mutable=MUTABLE)
    with pytest.raises(ValueError, match=r"`mutable` must select no integers.*int8.*noise.lattice"):
        tx.init(params_of())


def test_integers_of_too_many_bits_are_refused():
    with pytest.raises(ValueError, match=r"at most 8 bits, got a leaf of int32 and shape \(\)"):
        optimizer(mutable=True).init(params_of())


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"`high` must be above `low` \(1\), got 1"):
        noise.lattice(1, 1)
    with pytest.raises(TypeError, match="`low` must be a Python int or None, got 0.5"):
        noise.lattice(0.5)
    with pytest.raises(ValueError, match="`steps_per_sigma` must be"):
        noise.lattice(steps_per_sigma=0.0)
    tx = optimizer(kind=noise.lattice(-9, 0), mutable=True)
    params = {"q": jnp.zeros(3, jnp.uint4)}
    with pytest.raises(ValueError, match="`noise` must leave two integers to a leaf of uint4"):
        train(tx, params)


def test_factored_members_are_refused():
    with pytest.raises(ValueError, match="low_rank"):
        optimizer(execution=Execution(evaluate="factored"))


def test_the_state_for_other_leaves_is_refused():
    params = params_of()
    state = optimizer().init(params)
    other = optimizer(mutable={"q": False, "scale": True, "steps": False})
    with pytest.raises(ValueError, match=r"strategy_state.residual"):
        other.update(None, state, params, value_fn=distance)


class OwnLattice(noise.Noise):
    """A noise of a user that moves the rows of integers together."""

    def bounds(self, leaf):
        return (-3, 3)

    def normals(self, leaf):
        return (leaf.shape[:1],)

    def form(self, parts, leaf):
        return jnp.broadcast_to(parts[0].reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)

    def std(self, leaf, sigma, read):
        return 20 * sigma


def test_a_noise_of_ones_own_can_move_integers():
    params = {"q": jnp.zeros((6, 50), jnp.int8)}
    tx = optimizer(kind=OwnLattice(), mutable=True, sigma=0.1)
    asked, _ = ask_tell.ask(tx, None, tx.init(params), params)
    member = wide(ask_tell.member(asked.ticket, asked.parent, 1)["q"])
    assert np.abs(member).max() == 3
    assert np.ptp(member, 1).max() <= 1  # of one number, rounded up or down


# A network whose float weights are gone.

LAYERS = ((64, 32), (32, 10))
KINDS = {"ternary": (jnp.int8, -1, 1, 1.2, 0.6), "int4": (jnp.int4, -8, 7, 0.4, 2.0)}
GENERATIONS, SEEDS = 1000, range(5)


def error_of(kind, seed, train_split, test_split, *, masters):
    """The test error in percent after a run with integers, or with floats that are rounded."""
    dtype, low, high, scale, spread = KINDS[kind]
    random = np.random.default_rng(seed)
    start = [random.normal(0, spread, shape).round().clip(low, high) for shape in LAYERS]
    params = [jnp.asarray(leaf, jnp.float32 if masters else dtype) for leaf in start]

    def logits_of(params, images):
        for at, leaf in enumerate(params):
            leaf = jnp.clip(jnp.round(leaf), low, high) if masters else leaf.astype(jnp.float32)
            images = images if at == 0 else jax.nn.relu(images)
            images = images @ (leaf * (scale / LAYERS[at][0] ** 0.5))
        return images

    def value_fn(params, split):
        logits = logits_of(params, split.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
        return jnp.mean(losses)

    decay = optax.cosine_decay_schedule
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, population_size=64, antithetic=True, key=seed,
        sigma=decay(0.4, GENERATIONS, alpha=0.1), accept=accept.always(), recombine=RANKS,
        noise=noise.gaussian(relative=False) if masters else noise.lattice(low, high),
        es_optimizer=optax.adam(decay(0.1, GENERATIONS)), mutable=True,
    )  # fmt: skip

    @jax.jit
    def run(params, state):
        def one(carry, _):
            params, state = carry
            updates, state = tx.update(None, state, params, value_fn=value_fn, split=train_split)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, state), None, GENERATIONS)[0]

    params, _ = run(params, tx.init(params))
    assert masters or all(leaf.dtype == dtype for leaf in params)
    found = jnp.argmax(logits_of(params, test_split.images), 1)
    return 100 * float(jnp.mean(found != test_split.labels))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_integers_learns_as_one_with_float_masters_does(kind):
    digits = pytest.importorskip("benchmarks.quality.digits").load()
    runs = {
        masters: [
            error_of(kind, seed, digits.train, digits.test, masters=masters) for seed in SEEDS
        ]
        for masters in (False, True)
    }
    assert np.mean(runs[False]) <= np.mean(runs[True]) + 2, runs
    assert np.mean(runs[True]) < 15
