"""Members that learn before they are scored: what is evaluated, deployed and inherited."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import optax
import pytest
from recorded import GROUND, record_steps

from egd_optax import Execution, accept, ask_tell, evolve, noise, recombine, sigma
from egd_optax.backend.memory import PinnedHost

PARAMS = {"w": jnp.linspace(-0.4, 0.9, 24).reshape(4, 6), "b": jnp.linspace(-0.3, 0.8, 6)}
STILL = optax.set_to_zero()
SETTINGS = {
    "plain": {},
    "pairs": {"antithetic": True},
    "always": {"antithetic": True, "accept": accept.always()},
    "improved": {"accept": accept.improved()},
    "all members": {"recombine": recombine.centered_rank(), "antithetic": True},
    "generations": {"generations": 3},
    "low rank": {"noise": noise.low_rank(relative=False), "antithetic": True},
    "an optimizer": {"es_optimizer": optax.adam(1.0), "accept": accept.always()},
    "bounds": {"bounds": (-0.5, 0.95)},
    "noise that adapts": {"noise": noise.separable(), "recombine": recombine.centered_rank()},
    "sigma that adapts": {"sigma": sigma.path_length(start=0.3), "generations": 2},
}
EXECUTIONS = {
    "on the host": Execution(),
    "on the device": Execution(memory="device"),
    "learned again": Execution(memory="replay"),
    "in batches": Execution(candidate_batch_size=4),
    "in pages of their own": Execution(memory=PinnedHost()),
}
RATE = 0.125


def loss(params):
    return sum(jnp.mean((leaf.astype(jnp.float32) - 1.0) ** 2) for leaf in jax.tree.leaves(params))


def step_down(params, key, i):
    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads)


def as_it_is(params, key, i):
    return params


def run(params=PARAMS, steps=1, base=STILL, value_fn=loss, **kwargs):
    """The last parameters, the state, and everything that was evaluated."""
    settings = {"refine": step_down, **kwargs}
    return record_steps(base, params, loss, value_fn, steps=steps, **settings)


@pytest.mark.parametrize("name", ["plain", "pairs", "improved"])
@pytest.mark.parametrize("base", [STILL, optax.sgd(0.25)])
def test_members_are_those_that_are_drawn_after_a_step_and_the_child_is_that_of_numpy(name, base):
    _, _, drawn = run(base=base, refine=None, **SETTINGS[name])
    found, state, learned = run(base=base, **SETTINGS[name])
    pairs = SETTINGS[name].get("antithetic", False)
    count = GROUND["population_size"] + pairs
    chex.assert_trees_all_equal(learned[0], drawn[0])  # the parent does not learn
    for at in range(1, count):
        expected = {key: p - RATE * 2 * (p - 1) / p.size for key, p in drawn[at].items()}
        chex.assert_trees_all_close(learned[at], expected, atol=1e-6)
    fitness = np.array([float(loss(tree)) for tree in learned[:count]])
    best = np.argsort(fitness)[:2]
    for key, parent in learned[0].items():
        moved = sum((learned[at][key] - parent) / 2 for at in best)
        np.testing.assert_allclose(learned[count][key], parent + moved, atol=1e-6)
    # What was scored is what is deployed, to the bit.
    chosen = [learned[best[0]], learned[count]]
    assert any(
        all(np.array_equal(found[key], tree[key]) for key in found)
        for tree in (chosen[1:] if name == "improved" else chosen)
    )
    assert state.info.accepted.all()


# Of low rank other numbers are drawn for leaves that are blocks of their own.
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "low rank"])
def test_a_function_that_returns_what_it_gets_changes_nothing(name):
    found, state, _ = run(steps=2, refine=as_it_is, **SETTINGS[name])
    expected, expected_state, _ = run(steps=2, refine=None, **SETTINGS[name])
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    chex.assert_trees_all_close(state.strategy_state, expected_state.strategy_state, atol=1e-4)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["pairs", "all members", "generations", "low rank", "bounds"])
def test_every_way_to_run_it_finds_the_same_bits(name):
    first, *others = (
        run(steps=2, **SETTINGS[name], execution=execution)[0] for execution in EXECUTIONS.values()
    )
    for other in others:
        chex.assert_trees_all_equal(other, first)


@pytest.mark.exact
def test_a_best_member_is_deployed_as_it_was_scored():
    """Its fitness on other data says so, of which every member sees the same."""

    def guarded(execution):
        tx = evolve(STILL, **GROUND, refine=step_down, execution=execution)

        @jax.jit
        def step(state):
            updates, state = tx.update(
                None, state, PARAMS, value_fn=loss, accept_value_fn=lambda p: -jnp.sum(p["b"])
            )
            return optax.apply_updates(PARAMS, updates), state

        return step(tx.init(PARAMS))

    first, *others = map(guarded, EXECUTIONS.values())
    for other in others:
        chex.assert_trees_all_equal(other, first)


def test_a_function_gets_a_key_and_a_number_for_each_member():

    def recording(params, key, i):
        return {**params, "b": jnp.full_like(params["b"], i)}

    for pairs in (False, True):
        _, _, members = run(refine=recording, antithetic=pairs)
        assert [round(float(tree["b"][0])) for tree in members[1 : 8 + pairs]] == [
            *range(1, 8 + pairs)
        ]

    def drawing(params, key, i):
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)

    _, _, members = run(refine=drawing, antithetic=True, generations=2)
    assert len({float(tree["b"][0]) for tree in members[1:9] + members[11:19]}) == 16


def test_it_is_traced_once_whatever_the_number_of_members():
    traces = []

    def traced(params, key, i):
        traces.append(i)
        return params

    for size in (4, 16):
        run(refine=traced, population_size=size, antithetic=True)
    assert len(traces) == 2


def test_it_gets_the_arguments_that_it_names():
    def on_batch(params, key, i, *, batch):
        return jax.tree.map(lambda leaf: leaf + batch, params)

    tx = evolve(STILL, **GROUND, refine=on_batch)

    def step(state, batch):
        return tx.update(None, state, PARAMS, value_fn=loss, batch=batch)[0]

    state = tx.init(PARAMS)
    for batch in (0.25, -0.5):
        eager = step(state, jnp.float32(batch))
        jitted = jax.jit(step)(state, jnp.float32(batch))
        chex.assert_trees_all_close(eager, jitted, atol=1e-6)
        plain = evolve(STILL, **GROUND, refine=functools.partial(on_batch, batch=batch))
        expected = plain.update(None, state, PARAMS, value_fn=loss)[0]
        chex.assert_trees_all_close(eager, expected, atol=1e-6)
    with pytest.raises(TypeError, match="did you mean `batch`"):
        tx.update(None, state, PARAMS, value_fn=loss, batc=1.0)


def test_leaves_that_do_not_mutate_stay_as_they_are():
    mutable = {"w": True, "b": False}
    found, _, seen = run(mutable=mutable)
    for tree in [found, *seen]:
        np.testing.assert_array_equal(tree["b"], PARAMS["b"])
    _, _, drawn = run(mutable=mutable, refine=None)
    expected = drawn[3]["w"] - RATE * 2 * (drawn[3]["w"] - 1) / 24
    np.testing.assert_allclose(seen[3]["w"], expected, atol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_member_that_diverges_stays_as_it_was_drawn(bad):
    def diverging(params, key, i):
        found = step_down(params, key, i)
        return {**found, "b": jnp.where(i % 2 == 0, bad, found["b"])}

    blind = lambda params: jnp.sum(jnp.where(params["b"] < 0.5, 1.0, 0.0))  # noqa: E731
    found, _, seen = run(refine=diverging, value_fn=blind)
    _, _, drawn = run(refine=None, value_fn=blind)
    _, _, learned = run(value_fn=blind)
    for at in range(1, 8):
        chex.assert_trees_all_close(seen[at], (learned if at % 2 else drawn)[at], atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_members_are_clipped_to_their_bounds():
    _, _, seen = run(bounds=(-0.5, 0.9), refine=lambda p, key, i: jax.tree.map(lambda x: 9 * x, p))
    for tree in seen:
        for leaf in jax.tree.leaves(tree):
            assert np.all((leaf >= np.float32(-0.5)) & (leaf <= np.float32(0.9)))
    assert any(np.any(tree["w"] == np.float32(0.9)) for tree in seen[1:])


@pytest.mark.parametrize(
    ("dtype", "of_updates"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_in_few_digits_what_is_scored_is_deployed(dtype, of_updates):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    base = optax.GradientTransformation(
        lambda params: (),
        lambda grads, state, params: (
            jax.tree.map(lambda g: (-0.1 * g).astype(of_updates), grads),
            state,
        ),
    )
    found, _, seen = run(params, base=base)
    assert any(all(np.array_equal(found[key], tree[key]) for key in found) for tree in seen[1:])


def tell_all(tx, value_fn=loss, **extra):
    """The updates of a cycle whose members are made from pickled tickets."""
    asked, state = ask_tell.ask(tx, None, tx.init(PARAMS), PARAMS, **extra)
    while isinstance(asked, ask_tell.Asked):
        ticket, parent = pickle.loads(pickle.dumps((asked.ticket, asked.parent)))
        members = [ask_tell.member(ticket, parent, at) for at in range(ticket.size)]
        fitness = [float(jax.jit(value_fn)(member)) for member in members]
        asked, state = ask_tell.tell(tx, asked, fitness, state, PARAMS)
    return asked


def to_batch(params, key, i, batch):
    return jax.tree.map(lambda leaf: leaf + RATE * (batch - leaf), params)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["pairs", "all members", "generations", "an optimizer"])
def test_ask_and_tell_give_the_same_bits(name):
    tx = evolve(STILL, **{**GROUND, "refine": to_batch, **SETTINGS[name]})
    batch = jnp.float32(0.75)
    expected, _ = jax.jit(lambda state: tx.update(None, state, PARAMS, value_fn=loss, batch=batch))(
        tx.init(PARAMS)
    )
    chex.assert_trees_all_equal(tell_all(tx, batch=batch), expected)


def test_a_ticket_is_of_its_function():
    tx, other = (evolve(STILL, **GROUND, refine=fn) for fn in (step_down, as_it_is))
    asked, state = ask_tell.ask(tx, None, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="`asked` must be of this optimizer"):
        ask_tell.tell(other, asked, np.zeros(8), state, PARAMS)


def test_outside_of_jit_and_in_a_scan():
    tx = evolve(optax.sgd(0.1), **GROUND, refine=step_down)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    start = PARAMS, tx.init(PARAMS)
    (scanned, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 2))(start)
    (eager, _), _ = step(step(start, None)[0], None)
    chex.assert_trees_all_close(scanned, eager, atol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("name", ["plain", "all members"])
def test_devices_find_the_same(axis_type, divided, name):
    """Members divided over an axis, or parameters, small and large, whose leaves are divided."""
    settings = {**GROUND, **SETTINGS[name], "population_size": 16, "refine": step_down}
    params = {"w": jnp.linspace(-0.4, 0.9, 2**16).reshape(-1, 128), "b": PARAMS["b"]}
    expected, _, _ = run(params, **settings)
    mesh = Layout({"pop": 8}, axis_type).mesh
    spec = {"w": PartitionSpec("pop" if divided else None), "b": PartitionSpec()}
    placed = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, spec)
    execution = Execution() if divided else Execution(population_axis="pop", mesh=mesh)
    tx = evolve(STILL, **settings, execution=execution)
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(lambda state, params: tx.update(None, state, params, value_fn=loss))(
            tx.init(placed), placed
        )
        found = jax.device_get(optax.apply_updates(placed, updates))
    chex.assert_trees_all_close(found, expected, atol=2e-5)


@pytest.mark.parametrize("check_vma", [False, True])
def test_devices_with_samples_of_their_own_agree(check_vma):
    """Each learns from its own, and the results are averaged."""
    mesh = Layout({"data": 8}, AxisType.Auto).mesh
    targets = jnp.linspace(0.0, 1.0, 8)

    def value_fn(params, batch):
        return sum(jnp.mean((leaf - jnp.mean(batch)) ** 2) for leaf in jax.tree.leaves(params))

    def learn(params, key, i, batch):
        grads = jax.grad(value_fn)(params, batch)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    def step(tx, state, batch):
        return tx.update(None, state, PARAMS, value_fn=value_fn, batch=batch)[0]

    alone = evolve(STILL, **GROUND, refine=learn)
    expected = jax.jit(functools.partial(step, alone))(alone.init(PARAMS), targets)
    tx = evolve(STILL, **GROUND, refine=learn, execution=Execution(axis_name="data"))
    of_all = jax.shard_map(
        functools.partial(step, tx), mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(), check_vma=check_vma,
    )  # fmt: skip
    found = jax.jit(of_all)(tx.init(PARAMS), targets)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_a_rate_among_the_parameters_is_inherited_as_the_weighted_mean_of_logarithms():
    """Noise that is not relative draws it log-normal, around that of the parent."""
    params = {"net": PARAMS, "log_rate": jnp.log(0.1)}

    def learn(params, key, i):
        optimizer = optax.sgd(jnp.exp(params["log_rate"]))
        grads = jax.grad(lambda net: loss(net))(params["net"])
        updates, _ = optimizer.update(grads, optimizer.init(params["net"]))
        return {**params, "net": optax.apply_updates(params["net"], updates)}

    def value_fn(params):
        return loss(params["net"])

    weights = jnp.array([0.6, 0.3, 0.1])
    rule = recombine.elite_weights(lambda fitness: weights, elite_fraction=0.375)
    settings = {"recombine": rule, "accept": accept.improved(), "refine": learn}
    _, _, seen = run(params, value_fn=value_fn, **settings)
    *members, child = seen
    assert len(members) == 8
    rates = np.array([np.exp(tree["log_rate"]) for tree in members])
    assert len(set(rates.tolist())) == 8
    best = np.argsort([float(value_fn(tree)) for tree in members])[:3]
    expected = np.exp(np.sum(np.asarray(weights) * np.log(rates[best])))
    np.testing.assert_allclose(np.exp(child["log_rate"]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"refine": 3}, TypeError, r"`refine` must be a function of parameters, .* got 3"),
        (
            {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")},
            ValueError,
            r'`evaluate` must not be "factored" with refine=',
        ),
        ({"noise": noise.lattice()}, ValueError, r"`refine` must be None with noise=noise.lattice"),
    ],
)
def test_what_it_cannot_go_with_is_refused_when_the_optimizer_is_made(settings, error, message):
    with pytest.raises(error, match=message):
        evolve(optax.sgd(0.1), **{"refine": step_down, **settings})


@pytest.mark.parametrize(
    "bad",
    [
        lambda params, key, i: params["w"],
        lambda params, key, i: {**params, "b": params["b"][:3]},
        lambda params, key, i: {**params, "b": params["b"].astype(jnp.bfloat16)},
        lambda params, key, i: None,
    ],
)
def test_other_parameters_are_refused_by_name(bad):
    tx = evolve(STILL, **GROUND, refine=bad)
    with pytest.raises(ValueError, match=r"`refine` must return parameters like those"):
        tx.update(None, tx.init(PARAMS), PARAMS, value_fn=loss)
