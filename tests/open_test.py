"""Four things that a user adds without touching the library keep every promise of it."""

import ast
import functools
import io
import pathlib
import tokenize

import additions
from additions import AdamScaled, Annealed, FlatPages, OneFifth, Separable
import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
from recorded import observed_by

from egd_optax import Execution, accept, evolve, noise, recombine, sigma

DEVICES = 8
MOST_LINES = 40
LARGE = (182, 181)  # more than the library puts side by side with others


def params_of():
    draw = np.random.default_rng(5).normal
    small = {name: draw(0, 1, (5, 3)).astype(np.float32) for name in ("left", "right")}
    return {"large": draw(0, 1, LARGE).astype(np.float32), "small": small}


def loss(params):
    return sum(jnp.mean((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


BEST_HALF = recombine.mean(0.5)
ADDITIONS = {
    "adam": {"base": optax.adam(0.01), "noise": AdamScaled(), "sigma": 0.01},
    "one fifth": {"noise": OneFifth(), "accept": accept.improved()},
    "separable": {"noise": Separable()},
    "separable of the library": {"noise": noise.separable(0.2)},
    "path length": {"sigma": sigma.path_length(0.1)},
    "one fifth of the library": {"sigma": sigma.one_fifth(0.1), "accept": accept.improved()},
    "annealed": {"accept": Annealed()},
    "memory": {"memory": FlatPages()},
}
each = pytest.mark.parametrize("name", ADDITIONS)


def optimizer(name, antithetic=False, mutable=None, **execution):
    settings = {"base": optax.sgd(0.25), "sigma": 0.1, **ADDITIONS[name]}
    if "memory" in settings:
        execution = {"memory": settings.pop("memory"), **execution}
    return evolve(
        settings.pop("base"), evolve_every=2, population_size=8, generations=2, key=3,
        antithetic=antithetic, mutable=mutable, recombine=BEST_HALF,
        execution=Execution(**execution), **settings,
    )  # fmt: skip


def step_of(tx):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


def advance(step, params, state, steps):
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    return params, state


def train(tx, params=None, steps=4, wrap=jax.jit):
    params = jax.device_put(params_of(), jax.devices()[0]) if params is None else params
    return jax.device_get(advance(wrap(step_of(tx)), params, tx.init(params), steps))


# The size of each.


def code_lines(source, node):
    """The lines of a class, without docstrings, comments and blank lines."""
    documented = ast.ClassDef, ast.FunctionDef
    first = [inner.body[0] for inner in ast.walk(node) if isinstance(inner, documented)]
    spoken = {
        line
        for each in first
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
        for line in range(each.lineno, each.end_lineno + 1)
    }
    empty = tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    written = {
        line
        for token in tokens
        if token.type not in empty
        for line in range(token.start[0], token.end[0] + 1)
    }
    first_line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return len((written - spoken) & set(range(first_line, node.end_lineno + 1)))


def test_each_addition_is_a_class_of_few_lines():
    source = pathlib.Path(additions.__file__).read_text()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    counted = {node.name: code_lines(source, node) for node in classes}
    assert set(counted) == {"AdamScaled", "OneFifth", "Separable", "Annealed", "FlatPages"}
    assert max(counted.values()) <= MOST_LINES


def test_the_additions_use_nothing_private():
    tree = ast.parse(pathlib.Path(additions.__file__).read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    parts = [part for module in modules for part in module.split(".")]
    assert not [name for name in (*names, *parts) if name.startswith("_")]
    assert "core" not in parts


# The promises, for each addition.


@functools.cache
def on_the_device(name, antithetic):
    return train(optimizer(name, antithetic, memory="device"))


EXECUTIONS = {
    "host": {"memory": "host"},
    "replay": {"memory": "replay"},
    "flat": {"memory": FlatPages()},
    "batches": {"candidate_batch_size": 4},
}


@pytest.mark.exact
@pytest.mark.crossed(5)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("antithetic", [False, True])
@each
def test_an_addition_finds_the_same_bits_in_every_memory_and_in_batches(
    name, antithetic, execution
):
    reference = on_the_device(name, antithetic)
    assert int(reference[1].cycle) == 2
    params, state = train(optimizer(name, antithetic, **EXECUTIONS[execution]))
    chex.assert_trees_all_equal(params, reference[0])
    chex.assert_trees_all_equal(state.strategy_state, reference[1].strategy_state)
    assert state.info.accepted == reference[1].info.accepted


@pytest.mark.crossed(3)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@each
def test_an_addition_finds_the_same_on_eight_devices(name, axis_type):
    mesh = jax.make_mesh((DEVICES,), ("pop",), axis_types=(axis_type,))
    whole = jax.device_put(params_of(), NamedSharding(mesh, PartitionSpec()))
    params, state = train(optimizer(name, population_axis="pop", mesh=mesh), whole)
    reference = train(optimizer(name))
    chex.assert_trees_all_close(params, reference[0], atol=2e-5, rtol=0)
    chex.assert_trees_all_close(state.strategy_state, reference[1].strategy_state, atol=2e-5)
    assert state.info.accepted == reference[1].info.accepted
    assert state.info.evaluations == reference[1].info.evaluations


@pytest.mark.exact
@pytest.mark.crossed(2)
@each
def test_an_addition_finds_the_same_in_a_scan_after_a_resume_and_outside_of_jit(name):
    tx = optimizer(name)
    step, params = jax.jit(step_of(tx)), jax.device_put(params_of(), jax.devices()[0])
    reference = advance(step, params, tx.init(params), 4)

    saved = jax.device_get(advance(step, params, tx.init(params), 2))
    resumed = advance(step, *jax.device_put(saved, jax.devices()[0]), 2)
    chex.assert_trees_all_equal(resumed, reference)

    @jax.jit
    def scan(params, state):
        body = step_of(tx)
        return jax.lax.scan(lambda carry, _: (body(*carry), None), (params, state), None, length=4)

    scanned, _ = scan(params, tx.init(params))
    # A fitness is rounded by the program that it is part of.
    chex.assert_trees_all_equal(scanned[0], reference[0])
    chex.assert_trees_all_equal(scanned[1].strategy_state, reference[1].strategy_state)

    eager = train(tx, params, wrap=lambda step: step)
    chex.assert_trees_all_close(eager[0], reference[0], atol=1e-5)
    chex.assert_trees_all_close(eager[1].strategy_state, reference[1].strategy_state, atol=1e-5)
    assert eager[1].info.accepted == reference[1].info.accepted


@pytest.mark.crossed(1)
@pytest.mark.parametrize("name", ["adam", "separable"])
def test_what_a_noise_reads_may_lack_leaves_that_do_not_mutate(name):
    mutable = {"large": False, "small": {"left": False, "right": True}}
    tx = optimizer(name, mutable=mutable)
    (params, state), whole = train(tx, steps=2), params_of()
    alone, _ = train(optimizer(name, mutable=mutable, memory="replay"), steps=2)
    chex.assert_trees_all_equal(params, alone)
    assert np.isfinite(state.info.best_fitness)
    still = evolve(ADDITIONS[name].get("base", optax.sgd(0.25)), evolve_every=9)
    base, _ = train(still, whole, steps=2)
    np.testing.assert_array_equal(params["large"], base["large"])
    np.testing.assert_array_equal(params["small"]["left"], base["small"]["left"])


def one_cycle(kind, base=optax.sgd(0.25), params=None):
    params = {"a": jnp.linspace(-1.0, 1.0, 6), "b": jnp.ones((3, 2))} if params is None else params
    tx = evolve(base, evolve_every=1, noise=kind, population_size=4)
    updates, state = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=loss))(
        params, tx.init(params)
    )
    return updates, state


def test_a_noise_reads_the_state_of_the_base_outside_of_jit():
    params = {"a": jnp.linspace(-1.0, 1.0, 6)}
    tx = evolve(optax.adam(0.01), evolve_every=1, noise=AdamScaled(), population_size=4)
    arguments = params, tx.init(params), params
    found = [
        update(*arguments, value_fn=loss)[0]
        for update in (tx.update, jax.jit(tx.update, static_argnames="value_fn"))
    ]
    chex.assert_trees_all_close(*found, atol=1e-6)


def test_a_statistic_is_zero_for_leaves_that_the_base_freezes():
    base = optax.partition({"t": optax.sgd(0.25), "f": optax.set_to_zero()}, {"a": "t", "b": "f"})
    updates, state = one_cycle(Separable(), base)
    found, start = state.strategy_state.noise, jnp.log(Separable().first)
    assert (updates["b"] == 0).all()
    assert (found["b"] == start).all()
    assert (found["a"] != start).all()


def test_the_state_of_a_noise_keeps_its_dtype_under_x64():
    with jax.enable_x64(True):

        class Single(Separable):
            def init(self, params):
                return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), super().init(params))

        _, state = one_cycle(Single())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.strategy_state.noise)} == {
        jnp.dtype(jnp.float32)
    }


class Adapts(noise.Noise):
    """Replaces its state by what it was made of."""

    def __init__(self, first, then):
        self.first, self.then = first, then

    def init(self, params):
        return self.first

    def adapt(self, state, outcome):
        return self.then


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (
            0,
            0.5,
            r"`noise.adapt` must return a state like .*`noise.init`, got float32 \[\] for int32",
        ),
        (0.5, (0.5,), r"`noise.adapt` must return a state like .*: replace arrays only"),
        (
            0.5,
            np.ones(2),
            r"`noise.adapt` must return a state like .*\[2\].*keep shapes and dtypes",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_next_step_is_refused_by_name(first, then, message):
    with pytest.raises(ValueError, match=message):
        one_cycle(Adapts(first, then))


def test_stds_and_what_is_read_are_refused_by_name_if_they_do_not_fit():
    class Std(noise.Noise):
        def std(self, leaf, sigma, read):
            return jnp.ones(7)

    class Reads(noise.Noise):
        def reads(self, base_state, state):
            return {"a": jnp.ones(6)}

    with pytest.raises(ValueError, match=r"`noise.std` must return .*\(6,\), got shape \(7,\)"):
        one_cycle(Std())
    with pytest.raises(ValueError, match=r"`noise.reads` must return a pytree like the parameters"):
        one_cycle(Reads())


# What each of them does.


def record(tx, params, score=None):
    """All that `value_fn` is shown on the first step, in order, and the state after it."""
    seen = []

    def observe(shown):
        seen.append(jax.tree.map(np.array, shown))
        return np.float32((score or loss)(seen[-1]))

    params = jax.tree.map(jnp.asarray, params)
    step = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=observed_by(observe)))
    _, state = jax.block_until_ready(step(params, tx.init(params)))
    return seen, jax.device_get(state)


def squares(params):
    return sum(np.mean((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def test_noise_scaled_by_adam_spreads_by_the_second_moments():
    sigma, decay, floor, count = 0.01, 0.999, 0.125, 6
    shared = {"evolve_every": 1, "population_size": count, "accept": accept.always(), "key": 3}
    base = optax.chain(optax.scale_by_adam(b2=decay), optax.set_to_zero())
    scaled, _ = record(
        evolve(base, noise=AdamScaled(), sigma=sigma, **shared), params_of(), squares
    )
    plain = evolve(optax.set_to_zero(), noise=noise.gaussian(relative=False), sigma=1.0, **shared)
    units, _ = record(plain, params_of(), squares)
    # The gradient of this step is the parameters.
    stds = jax.tree.map(
        lambda leaf: sigma / (np.sqrt((1 - decay) * leaf.astype(np.float64) ** 2) + floor),
        params_of(),
    )
    for member, unit in zip(scaled[1:count], units[1:count], strict=True):
        own = jax.tree.map(lambda a, p, std: (a - p) / std, member, params_of(), stds)
        numbers = jax.tree.map(np.subtract, unit, params_of())
        chex.assert_trees_all_close(own, numbers, atol=1e-4)
        assert np.std(own["large"]) == pytest.approx(1, abs=0.03)


def test_one_fifth_rule_sets_the_sigma_of_the_next_cycle():
    rule, sigma = OneFifth(), np.float32(0.25)
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, noise=rule, sigma=float(sigma),
        accept=accept.improved(), population_size=4, key=3,
    )  # fmt: skip
    params = {"x": jnp.linspace(-1.0, 1.0, 6)}
    step, state, success = jax.jit(step_of(tx)), tx.init(params), []
    times = np.float32(1)
    for _ in range(12):
        params, state = step(params, state)
        info = jax.device_get(state.info)
        assert info.sigma == sigma * times
        success.append(bool(info.child_fitness < info.parent_fitness))
        times *= np.float32(rule.growth if success[-1] else rule.growth**-0.25)
        assert state.strategy_state.noise == times
    assert set(success) == {True, False}


def centered_ranks(fitness):
    worse = (fitness[None, :] > fitness[:, None]).sum(1)
    wins = worse - (fitness[None, :] < fitness[:, None]).sum(1)
    return wins / wins[wins > 0].sum()


@pytest.mark.parametrize("antithetic", [False, True])
def test_separable_noise_adapts_each_std_to_the_members(antithetic):
    rule, count = Separable(first=0.5), 8
    settings = {"evolve_every": 1, "population_size": count, "antithetic": antithetic}
    tx = evolve(
        optax.set_to_zero(), noise=rule, recombine=recombine.centered_rank(),
        accept=accept.improved(), key=3, **settings,
    )  # fmt: skip
    seen, state = record(tx, params_of(), squares)
    parent, members = seen[0], seen[1 : count + antithetic]
    weights = centered_ranks(np.array([np.float32(squares(each)) for each in (parent, *members)]))

    def expected(start, *leaves):
        units = (np.array(leaves, np.float64) - start) / rule.first
        total = np.tensordot(weights[1:], units**2 - 1, 1)
        return rule.first * np.exp(rule.rate / 2 * total)

    stds = jax.tree.map(np.exp, state.strategy_state.noise)
    chex.assert_trees_all_close(stds, jax.tree.map(expected, parent, *members), rtol=1e-4)


@pytest.mark.exact
def test_separable_noise_learns_what_one_sigma_does_not():
    sensitivity = jnp.logspace(0, 4, 10)

    def badly_scaled(params):
        return jnp.sum(sensitivity * params**2)

    def final(kind):
        tx = evolve(
            optax.set_to_zero(), evolve_every=1, population_size=16, antithetic=True, sigma=0.1,
            noise=kind, recombine=recombine.centered_rank(), accept=accept.improved(), key=3,
        )  # fmt: skip

        def body(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, value_fn=badly_scaled)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.ones(10)
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, None, length=300))(
            (params, tx.init(params))
        )
        return float(badly_scaled(params))

    separable, one_sigma = final(Separable()), final(noise.gaussian(relative=False))
    assert separable < 0.2 * one_sigma < 0.2 * float(jnp.sum(sensitivity))


def test_annealing_takes_a_worse_child_with_the_chance_of_its_temperature():
    cycles, params = 64, {"x": jnp.linspace(-1.0, 1.0, 6)}
    rule = Annealed(temperature=1.0, cooling=1.0)
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, accept=rule, recombine=recombine.mean(1.0),
        population_size=4, key=3,
    )  # fmt: skip

    def value_fn(shown):  # whatever leaves these parameters loses so much that its chance is half
        return jnp.log(2.0) * jnp.any(shown["x"] != params["x"])

    def body(state, _):
        _, state = tx.update(params, state, params, value_fn=value_fn)
        return state, state.info.accepted

    _, accepted = jax.jit(lambda s: jax.lax.scan(body, s, None, length=cycles))(tx.init(params))
    assert 0.3 * cycles < int(accepted.sum()) < 0.7 * cycles


def test_annealing_cools_with_every_generation():
    _, state = train(optimizer("annealed"), steps=4)
    rule, generations = Annealed(), 4
    assert state.strategy_state.accept == np.float32(rule.temperature * rule.cooling**generations)


def test_annealing_at_no_temperature_takes_what_is_better():
    def run(rule):
        tx = evolve(optax.sgd(0.25), evolve_every=2, accept=rule, population_size=4, key=3)
        return train(tx, {"x": jnp.linspace(-1.0, 1.0, 6)}, steps=8)

    frozen, improved = run(Annealed(temperature=1e-30)), run(accept.improved())
    chex.assert_trees_all_equal(frozen[0], improved[0])


def test_a_memory_is_asked_for_as_many_pages_as_members_recombine():
    asked = []

    class Asked(FlatPages):
        def empty(self, like, count):
            asked.append((count, sum(leaf.size for leaf in like)))
            return super().empty(like, count)

    train(optimizer("memory", memory=Asked()), steps=2)
    # Leaves that are small are drawn again instead.
    assert set(asked) == {(4, LARGE[0] * LARGE[1])}


def test_a_memory_has_to_be_one():
    for other in (FlatPages, object(), "disk", None):
        with pytest.raises(ValueError, match=r"`memory` must be"):
            Execution(memory=other)


def test_a_memory_is_told_apart_by_value_or_identity():
    memory = FlatPages()
    assert Execution(memory=memory) == Execution(memory=memory)
    assert hash(Execution(memory=memory)) == hash(Execution(memory=memory))
