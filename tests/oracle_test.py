"""NumPy finds what a cycle does from the members that `value_fn` saw and their fitness.

The oracle knows the words of the algorithm, and nothing of the code of the library.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import optax
import pytest
from recorded import observed_by

from egd_optax import Execution, accept, evolve, recombine

DEVICES = 8
SIGMA = 0.1
RATE = 0.25
TARGET = 0.3
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def params_of(dtype=np.float32):
    """Leaves of more and of fewer entries than are put side by side, two of them alike."""
    draw = np.random.default_rng(5).normal
    shapes = {"large": (200, 200), "left": (5, 4), "right": (5, 4), "row": (7,)}
    leaves = {name: draw(0, 1, shape) for name, shape in shapes.items()}
    if np.issubdtype(dtype, np.complexfloating):
        leaves = {name: leaf + 1j * draw(0, 1, leaf.shape) for name, leaf in leaves.items()}
    return {"large": leaves.pop("large").astype(dtype), "small": cast(leaves, dtype)}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), tree)


def wide(leaf):
    is_complex = np.issubdtype(leaf.dtype, np.complexfloating)
    return np.asarray(leaf).astype(np.complex128 if is_complex else np.float64)


def distance(params, target=TARGET, xp=np):
    """The fitness, by NumPy or by JAX."""
    widest = xp.float32 if xp is jnp else xp.float64
    leaves = [xp.abs(leaf - target).astype(widest) for leaf in jax.tree.leaves(params)]
    return sum(xp.mean(leaf**2) for leaf in leaves)


# The oracle.


def logarithmic(fitness, xp=jnp):
    weights = xp.log(fitness.size + 0.5) - xp.log(xp.arange(1, fitness.size + 1))
    return weights / weights.sum()


def by_excess(fitness, xp=jnp):
    return xp.exp(-50 * (fitness - xp.min(fitness))) / 4


def mean(fitness):
    finite = np.isfinite(fitness)
    return finite / max(finite.sum(), 1)


def softmax(fitness):
    likely = np.exp(-(fitness - fitness[0]) / 0.1) if np.isfinite(fitness[0]) else 0 * fitness
    return likely / likely.sum()


def centered_ranks(fitness):
    finite = np.isfinite(fitness)
    worse = ((fitness[None, :] > fitness[:, None]) & finite[None, :]).sum(1)
    better = (fitness[None, :] < fitness[:, None]).sum(1)
    wins = np.where(finite, worse - better, 0)
    return wins / max(wins[wins > 0].sum(), 1)


class Rule(NamedTuple):
    """A rule of the library, the share of members that it weighs, and its weights of these."""

    rule: recombine.Recombine
    share: float | None
    weights: object


RULES = {
    "mean": Rule(recombine.mean(0.3), 0.3, mean),
    "softmax": Rule(recombine.softmax(0.1, 0.5), 0.5, softmax),
    "ranks": Rule(recombine.centered_rank(), None, centered_ranks),
    "elites": Rule(recombine.elite_weights(logarithmic, 0.5), 0.5, lambda f: logarithmic(f, np)),
    "members": Rule(recombine.member_weights(by_excess), None, lambda f: by_excess(f, np)),
}
ACCEPT = {"best": accept.best(), "improved": accept.improved(), "always": accept.always()}


class Case(NamedTuple):
    """What a cycle is to do."""

    rule: str = "mean"
    accept: str = "best"
    antithetic: bool = False
    generations: int = 1
    population: int = 8
    es_optimizer: object = None

    @property
    def skips_parent(self):
        return self.antithetic and self.accept == "always"

    @property
    def size(self):
        """The members of a generation, the parent included."""
        return self.population + self.antithetic

    def optimizer(self, base=None, **settings):
        if self.es_optimizer is not None:
            settings["es_optimizer"] = self.es_optimizer
        return evolve(
            optax.sgd(RATE) if base is None else base, evolve_every=1, sigma=SIGMA, key=3,
            population_size=self.population, generations=self.generations,
            antithetic=self.antithetic, recombine=RULES[self.rule].rule,
            accept=ACCEPT[self.accept], **settings,
        )  # fmt: skip


class Member(NamedTuple):
    """What `value_fn` saw, and what it returned."""

    params: object
    fitness: np.float32


def counted(fitness):
    return np.float64(fitness) if np.isfinite(fitness) else np.inf


def weights_of(case, fitness):
    """The weight of each member; none where there is nothing to select."""
    rule = RULES[case.rule]
    if (fitness == fitness[0]).all():
        return np.zeros(fitness.size)
    weights = np.zeros(fitness.size)
    with np.errstate(invalid="ignore"):
        if rule.share is None:
            weights = rule.weights(fitness)
        else:
            best = np.argsort(fitness, stable=True)[: math.ceil(rule.share * case.population)]
            weights[best] = rule.weights(fitness[best])
    return np.where(np.isfinite(fitness) & np.isfinite(weights), weights, 0)


def sum_of(weights, members, parent):
    """The weighted sum of member - parent, wide."""

    def summed(parent, *leaves):
        return sum(w * (wide(leaf) - wide(parent)) for w, leaf in zip(weights, leaves, strict=True))

    return jax.tree.map(summed, parent, *(member.params for member in members))


class Oracle:
    """Follows a cycle, generation by generation, through what was evaluated.

    Attributes:
        parent: the parameters that the generation starts from.
        exact: whether `parent` was evaluated, and is known to the bit.
        outcome: what the latest generation ended with.
    """

    def __init__(self, case, parent, tolerance=2e-6, guards=()):
        self.case, self.parent, self.exact = case, parent, True
        self.tolerance, self.guards, self.outcome = tolerance, list(guards), None
        self.accepted = False
        if case.es_optimizer is not None:
            self.es_state = case.es_optimizer.init(cast(parent, np.float32))

    def close(self, found, expected):
        """Whether what was found is near, as the rounding of its dtype allows."""
        chex.assert_trees_all_close(
            jax.tree.map(wide, found), jax.tree.map(wide, expected), atol=self.tolerance
        )

    def follow(self, seen):
        seen = list(seen)
        for _ in range(self.case.generations):
            self.generation(seen)
        assert not seen

    def generation(self, seen):
        case = self.case
        members = [] if case.skips_parent else [seen.pop(0)]
        if members:
            assert_same_bits(members[0].params, self.parent) if self.exact else self.close(
                members[0].params, self.parent
            )
            self.parent = members[0].params
        first = len(members)
        members += [seen.pop(0) for _ in range(case.size - 1)]
        if case.antithetic:
            for one, other in zip(members[first::2], members[first + 1 :: 2], strict=True):
                self.close(mirror(one.params, self.parent), other.params)
        fitness = np.array([counted(member.fitness) for member in members])
        weights = weights_of(case, fitness)
        child = self.child(weights, members)
        evaluated = None if case.accept == "always" else seen.pop(0)
        if evaluated is not None:
            self.close(evaluated.params, child)
        moved = (weights[first:] != 0).any()
        self.choose(members, fitness, evaluated, child, moved)

    def child(self, weights, members):
        direction = sum_of(weights, members, self.parent)
        if self.case.es_optimizer is None:
            return jax.tree.map(lambda p, by: wide(p) + by, self.parent, direction)
        grads = jax.tree.map(lambda by: jnp.float32(-by), direction)
        parent = cast(self.parent, np.float32)
        updates, self.es_after = self.case.es_optimizer.update(grads, self.es_state, parent)
        return jax.tree.map(lambda p, by: wide(p) + np.float64(by), self.parent, updates)

    def choose(self, members, fitness, evaluated, child, moved):
        if evaluated is None:
            taken = "child" if moved else "parent"
            exact = not moved and self.exact
        else:
            best = members[int(np.argmin(fitness))]
            scores = [fitness[0], fitness.min(), counted(evaluated.fitness)]
            if self.guards:
                asked = 3 if self.case.accept == "best" else 2
                found = [counted(self.guards.pop(0).fitness) for _ in range(asked)]
                lost = not np.isfinite(scores[2])
                scores = [found[0], found[1], np.inf if lost else found[-1]]
            if self.case.accept == "best":
                taken = ("parent", "best", "child")[int(np.argmin(scores))]
            else:
                taken = "child" if scores[2] < scores[0] else "parent"
            exact = True
        if taken == "child":
            self.parent = child if evaluated is None else evaluated.params
            if self.case.es_optimizer is not None:
                self.es_state = self.es_after
        elif taken == "best":
            self.parent = best.params
        self.exact, self.outcome = exact, taken
        self.accepted |= taken != "parent"


def mirror(params, parent):
    return jax.tree.map(lambda leaf, p: 2 * wide(p) - wide(leaf), params, parent)


def assert_same_bits(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


# What it is asked about.


class Run(NamedTuple):
    """A cycle of the library: its evaluations in order, and what it ended with."""

    seen: list
    guards: list
    parent: object
    updates: object
    landed: object
    state: object

    @property
    def info(self):
        return self.state.info


def record(case, score=distance, guard=None, params=None, base=None, **settings):
    """One step with a cycle whose `value_fn` NumPy computes."""
    seen, guards = [], []

    def observed(where, score):
        def observe(shown):
            shown = jax.tree.map(np.array, shown)
            where.append(Member(shown, np.float32(score(shown))))
            return where[-1].fitness

        return observed_by(observe)

    params = jax.tree.map(jnp.asarray, params_of() if params is None else params)
    grads = jax.tree.map(lambda leaf: (leaf / 8).astype(leaf.dtype), params)
    base = optax.sgd(RATE) if base is None else base
    tx = case.optimizer(base, **settings)
    guarding = {} if guard is None else {"accept_value_fn": observed(guards, guard)}

    @jax.jit
    def step(grads, state, params):
        value_fn = observed(seen, score)
        return tx.update(grads, state, params, value_fn=value_fn, **guarding)

    updates, state = jax.block_until_ready(step(grads, tx.init(params), params))
    by_base, _ = base.update(grads, base.init(params), params)
    parent = jax.device_get(optax.apply_updates(params, by_base))
    landed = jax.device_get(optax.apply_updates(params, updates))
    return Run(seen, guards, parent, updates, landed, jax.device_get(state))


def assert_agrees(case, run, **settings):
    """The library did what the oracle finds, and its update leads to what was evaluated."""
    oracle = Oracle(case, run.parent, guards=run.guards, **settings)
    oracle.follow(run.seen)
    assert run.info.accepted == oracle.accepted
    assert run.info.evaluations == len(run.seen)
    if oracle.exact:
        assert_same_bits(run.landed, oracle.parent)
    else:
        oracle.close(run.landed, oracle.parent)
    return oracle


def crossed_cases():
    """Every rule with every acceptance, with pairs and generations spread over them."""
    for at, rule in enumerate(RULES):
        for by, kind in enumerate(ACCEPT):
            yield Case(rule, kind, bool((at + by) % 2), 1 + (at * 3 + by) // 2 % 2)


def named(case):
    pairs = "pairs-" * case.antithetic
    return f"{case.rule}-{case.accept}-{pairs}{case.generations}"


@pytest.mark.crossed(4)
@pytest.mark.parametrize("case", list(crossed_cases()), ids=named)
def test_a_cycle_does_what_numpy_finds(case):
    assert_agrees(case, record(case))


@pytest.mark.crossed(1)
@pytest.mark.parametrize("memory", ["device", "replay"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_batches_and_memories_lead_to_what_numpy_finds(memory, batch_size):
    case = Case("softmax", "best", antithetic=True, generations=2)
    run = record(case)
    assert_agrees(case, run)
    execution = Execution(memory=memory, candidate_batch_size=batch_size)
    landed, info = plain_run(case, execution=execution)
    assert_same_bits(landed, run.landed)
    assert info.accepted == run.info.accepted
    assert info.evaluations == run.info.evaluations


def plain_run(case, axis_type=None, **settings):
    """The same cycle with a `value_fn` by JAX, on one device or on eight."""
    params = params_of()
    if axis_type is not None:
        mesh = jax.make_mesh((DEVICES,), ("pop",), axis_types=(axis_type,))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        settings["execution"] = Execution(population_axis="pop", mesh=mesh)
    tx = case.optimizer(**settings)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda leaf: leaf / 8, params)
        value_fn = lambda shown: distance(shown, xp=jnp)  # noqa: E731
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state.info

    params = jax.tree.map(jnp.asarray, params)
    return jax.device_get(jax.block_until_ready(step(params, tx.init(params))))


ON_EIGHT = [
    Case("mean", "best", antithetic=False, generations=2),
    Case("softmax", "improved", antithetic=True, generations=1),
    Case("ranks", "always", antithetic=True, generations=2),
    Case("elites", "best", antithetic=True, generations=1),
    Case("members", "improved", antithetic=False, generations=1),
]


@pytest.mark.crossed(2)
@pytest.mark.parametrize("axis_type", [AUTO, EXPLICIT], ids=["auto", "explicit"])
@pytest.mark.parametrize("case", ON_EIGHT, ids=named)
def test_eight_devices_do_what_numpy_finds(case, axis_type):
    case = case._replace(population=2 * DEVICES)
    run = record(case)
    oracle = assert_agrees(case, run)
    landed, info = plain_run(case, axis_type)
    chex.assert_trees_all_close(
        jax.tree.map(wide, landed), jax.tree.map(wide, oracle.parent), atol=2e-5
    )
    assert info.accepted == oracle.accepted
    assert info.evaluations == len(run.seen)
    np.testing.assert_allclose(info.mean_fitness, run.info.mean_fitness, rtol=1e-5)
    np.testing.assert_allclose(info.child_fitness, run.info.child_fitness, rtol=1e-5)


# Members.


def test_noise_has_the_root_mean_square_of_each_leaf_as_its_unit():
    run = record(Case("mean", "always", population=6))
    deviations = [
        jax.tree.map(lambda leaf, p: wide(leaf) - wide(p), member.params, run.parent)["large"]
        for member in run.seen[1:]
    ]
    expected = SIGMA * np.sqrt(np.mean(wide(run.parent["large"]) ** 2))
    assert len(deviations) == 5
    for deviation in deviations:
        assert np.std(deviation) == pytest.approx(expected, rel=0.03)
        assert abs(np.mean(deviation)) < 0.03 * expected
    correlations = np.corrcoef([deviation.ravel() for deviation in deviations]) - np.eye(5)
    assert np.abs(correlations).max() < 0.03


def test_frozen_leaves_stay_at_the_base_step_and_renumber_no_noise():
    case = Case("ranks", "improved")
    mutable = {"large": True, "small": {"left": False, "right": True, "row": False}}
    every, some = record(case), record(case, mutable=mutable)
    oracle = assert_agrees(case, some)
    assert oracle.outcome == "child"
    for member in (*some.seen, Member(some.landed, np.float32(0))):
        for name in ("left", "row"):
            assert_same_bits(member.params["small"][name], some.parent["small"][name])
    for one, other in zip(every.seen[: case.size], some.seen[: case.size], strict=True):
        assert_same_bits(one.params["large"], other.params["large"])
        assert_same_bits(one.params["small"]["right"], other.params["small"]["right"])


# Fitness that is not finite.

START = params_of()["large"][0, 0] * np.float32(1 - RATE / 8)


def lost_where(condition, value):
    """A fitness that is lost where a condition holds for one entry of the parameters."""

    def score(params):
        return value if condition(params["large"][0, 0]) else distance(params)

    return score


LOST = {
    "half": lost_where(lambda entry: entry > START, math.nan),
    "half minus infinite": lost_where(lambda entry: entry < START, -math.inf),
    "all but the parent": lost_where(lambda entry: entry != START, math.inf),
    "the parent": lost_where(lambda entry: entry == START, math.nan),
    "all": lost_where(lambda entry: True, math.nan),
}


@pytest.mark.crossed(4)
@pytest.mark.parametrize(
    "case",
    [
        Case("mean", "best"),
        Case("softmax", "improved", antithetic=True),
        Case("ranks", "always"),
        Case("members", "best", generations=2),
    ],
    ids=named,
)
@pytest.mark.parametrize("lost", LOST)
def test_what_has_no_finite_fitness_is_never_taken(lost, case):
    run = record(case, LOST[lost])
    oracle = assert_agrees(case, run)
    assert np.isfinite(jax.tree.leaves(run.landed)[0]).all()
    if lost == "all":
        assert_same_bits(run.landed, run.parent)
        assert not np.isfinite(run.info.best_fitness)
    elif lost == "all but the parent":
        assert_same_bits(run.landed, run.parent)
    elif case.accept != "always":
        assert oracle.outcome != "parent"
        assert np.isfinite(LOST[lost](run.landed))


@pytest.mark.parametrize("kind", ["best", "always"])
def test_members_of_equal_fitness_leave_the_base_step(kind):
    run = record(Case("mean", kind), lambda params: 1.0)
    assert_agrees(Case("mean", kind), run)
    assert not run.info.accepted
    assert_same_bits(run.landed, run.parent)


def test_ties_go_to_the_parent_and_then_to_the_member():
    # One half is as good as the parent, and the other one is worse.
    tied = lambda params: 2.0 if params["large"][0, 0] > START else 1.0  # noqa: E731
    case = Case("elites", "best")
    run = record(case, tied)
    assert assert_agrees(case, run).outcome == "parent"
    # The parent is the worst, and the child as good as each member.
    flat = lambda params: 2.0 if params["large"][0, 0] == START else 1.0  # noqa: E731
    run = record(case, flat)
    assert assert_agrees(case, run).outcome == "best"
    assert_same_bits(run.landed, run.seen[1].params)


# Dtypes.


def narrow(dtype):
    """Stochastic gradient descent whose updates have a dtype of their own."""
    to = optax.stateless(lambda by, _: jax.tree.map(lambda leaf: leaf.astype(dtype), by))
    return optax.chain(optax.sgd(RATE), to)


DTYPES = {
    "bfloat16": (ml_dtypes.bfloat16, None, 2**-6),
    "bfloat16 updates": (np.float32, narrow(jnp.bfloat16), 2**-7),
    "complex64": (np.complex64, None, 2e-6),
}


@pytest.mark.crossed(3)
@pytest.mark.parametrize(
    "case",
    [Case("mean", "best"), Case("ranks", "improved", antithetic=True, generations=2)],
    ids=named,
)
@pytest.mark.exact
@pytest.mark.parametrize("kind", DTYPES)
def test_updates_of_any_dtype_lead_to_what_was_evaluated(kind, case):
    dtype, base, tolerance = DTYPES[kind]
    params = params_of(dtype)
    if kind == "bfloat16":  # its steps are small enough to tell a deviation from rounding
        params = jax.tree.map(lambda leaf: (leaf.astype(np.float32) / 4).astype(dtype), params)
    run = record(case, params=params, base=base)
    assert assert_agrees(case, run, tolerance=tolerance).outcome != "parent"
    by = jnp.bfloat16 if "bfloat16" in kind else dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(run.updates)} == {np.dtype(by)}
    for member in run.seen:
        # Each is a point that an update of this dtype leads to.
        updates = jax.tree.map(lambda leaf, p: jnp.asarray(leaf - p, by), member.params, params)
        own = jax.device_get(optax.apply_updates(jax.tree.map(jnp.asarray, params), updates))
        assert_same_bits(own, member.params)


def test_complex_noise_has_two_equal_sides():
    params = params_of(np.complex64)
    run = record(Case("mean", "always", population=3), params=params)
    deviation = run.seen[1].params["large"] - run.parent["large"]
    scale = SIGMA * np.sqrt(np.mean(np.abs(run.parent["large"]) ** 2) / 2)
    assert np.std(deviation.real) == pytest.approx(scale, rel=0.03)
    assert np.std(deviation.imag) == pytest.approx(scale, rel=0.03)
    assert abs(np.corrcoef(deviation.real.ravel(), deviation.imag.ravel())[0, 1]) < 0.03


# Acceptance on other data, auxiliary output, and other steps.


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "case",
    [
        Case("mean", "best", generations=2),
        Case("ranks", "improved", antithetic=True),
        Case("softmax", "best", antithetic=True),
    ],
    ids=named,
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_guard_compares_parent_best_and_child(sign, case):
    """One that agrees with the fitness lets a candidate pass, its opposite none but by chance."""
    run = record(case, guard=lambda params: sign * distance(params, 0.2))
    count = case.generations * (3 if case.accept == "best" else 2)
    assert len(run.guards) == count
    oracle = assert_agrees(case, run)
    assert not oracle.guards
    assert oracle.accepted == (sign == 1)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    "case", [Case("mean", "best"), Case("mean", "improved", True, 2)], ids=named
)
def test_auxiliary_output_is_that_of_parent_best_and_child(case):
    """It is compared with what was recorded, for it is a function of the parameters."""

    def aux_of(params, xp):
        return {"entry": params["small"]["row"][0], "calls": xp.int32(1)}

    run = record(case)
    tx = case.optimizer(aux={"entry": jnp.float32(0), "calls": 0})
    params = jax.tree.map(jnp.asarray, params_of())

    def value_fn(shown):
        return distance(shown, xp=jnp), aux_of(shown, jnp)

    grads = jax.tree.map(lambda leaf: leaf / 8, params)
    _, state = jax.jit(lambda p, s: tx.update(grads, s, p, value_fn=value_fn))(
        params, tx.init(params)
    )
    aux, each = jax.device_get(state.info.aux), len(run.seen) // case.generations
    last = run.seen[-each:]
    best = last[int(np.argmin([member.fitness for member in last[:-1]]))]
    for found, member in ((aux.parent, run.seen[0]), (aux.best, best), (aux.child, last[-1])):
        assert found["entry"] == aux_of(member.params, np)["entry"]
        assert found["calls"] == 1
    assert aux.total["calls"] == len(run.seen)
    total = sum(aux_of(member.params, np)["entry"] for member in run.seen)
    assert aux.total["entry"] == pytest.approx(float(total), rel=1e-5)


STEPS = {"half": optax.sgd(0.5), "adam": optax.adam(0.01, eps=1e-3)}


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "case",
    [
        Case("mean", "best"),
        Case("ranks", "improved", antithetic=True, generations=2),
        Case("elites", "always", generations=2),
    ],
    ids=named,
)
@pytest.mark.parametrize("step", STEPS)
def test_an_es_optimizer_steps_against_the_weighted_sum(step, case):
    case = case._replace(es_optimizer=STEPS[step])
    run = record(case)
    oracle = assert_agrees(case, run, tolerance=1e-5)
    state = run.state.strategy_state.es_optimizer
    chex.assert_trees_all_close(state, jax.device_get(oracle.es_state), atol=1e-6)
