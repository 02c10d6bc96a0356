"""What `value_fn` returns beside the fitness: of parent, best and child, and added up over all."""

import chex
from flax import serialization
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import optax
import pytest
from rules import ACCEPT

from egd_optax import Execution, accept, evolve, noise, recombine
from xla_options import known

GROUND = {"evolve_every": 1, "population_size": 8, "sigma": 0.1}


def params_of(dtype=jnp.float32):
    wave = jnp.linspace(-1.0, 2.0, 24)
    return {"w": wave.reshape(4, 6).astype(dtype), "b": wave[:6].astype(dtype)}


def loss(params):
    return sum(jnp.mean((leaf.astype(jnp.float32) - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def with_itself(params):
    """The fitness, and beside it what was evaluated, a count of one, and a flag."""
    value = loss(params)
    return value, {"params": params, "count": jnp.int32(1), "good": value < 1.0}


AUX = jax.eval_shape(with_itself, params_of())[1]


def step_of(tx, value_fn=with_itself, **extra):
    def step(params, state):
        updates, state = tx.update(
            jax.grad(loss)(params), state, params, value_fn=value_fn, **extra
        )
        return optax.apply_updates(params, updates), state

    return step


def run(steps=1, params=None, value_fn=with_itself, extra=None, **kwargs):
    params = params_of() if params is None else params
    tx = evolve(optax.sgd(0.1), **{**GROUND, "aux": AUX, **kwargs})
    state = tx.init(params)
    step = (
        jax.jit(step_of(tx, value_fn, **(extra or {})))
        .lower(params, state)
        .compile(known("hurried"))
    )
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    return params, state.info


FACTORED = {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")}
SETTINGS = {
    "plain": {},
    "pairs": {"antithetic": True},
    "generations": {"generations": 3},
    "batches": {"execution": Execution(candidate_batch_size=3)},
    "batches of pairs": {"antithetic": True, "execution": Execution(candidate_batch_size=4)},
    "redrawn": {"noise": noise.low_rank()},
    "factored": FACTORED,
    "factored pairs": {**FACTORED, "antithetic": True},
    "kept on the device": {"execution": Execution(memory="device")},
    "all members": {"recombine": recombine.centered_rank()},
}


@pytest.mark.parametrize("rule", ACCEPT)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.crossed(2)
def test_what_comes_back_belongs_to_the_fitness_beside_it(name, rule):
    """The parameters that were evaluated come back: their fitness is that of `info`."""
    settings = {**SETTINGS[name], "accept": ACCEPT[rule]}
    params, info = run(**settings)
    aux = info.aux
    evaluates_all = rule != "always"
    evaluates_parent = evaluates_all or not settings.get("antithetic")
    zeros = jax.tree.map(jnp.zeros_like, aux.parent)
    chex.assert_trees_all_close(loss(aux.best["params"]), info.best_fitness, rtol=1e-5)
    for fitness, found, is_evaluated in (
        (info.parent_fitness, aux.parent, evaluates_parent),
        (info.child_fitness, aux.child, evaluates_all),
    ):
        if is_evaluated:
            chex.assert_trees_all_close(loss(found["params"]), fitness, rtol=1e-5)
            assert found["good"] == (fitness < 1.0)
        else:
            chex.assert_trees_all_equal(found, zeros)
    parent = jax.tree.map(lambda p, g: p - 0.1 * g, params_of(), jax.grad(loss)(params_of()))
    if evaluates_parent:
        chex.assert_trees_all_close(aux.parent["params"], parent, rtol=1e-6)
    if rule == "finite":
        chex.assert_trees_all_close(aux.child["params"], params, rtol=1e-6)
    if rule == "best" and info.best_fitness < info.child_fitness:
        chex.assert_trees_all_close(aux.best["params"], params, rtol=1e-6)
    # Each evaluation adds one.
    assert aux.total["count"] == info.evaluations
    assert aux.total["count"].dtype == jnp.int32


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.crossed(1)
def test_nothing_else_changes(name):
    params, info = run(2, **SETTINGS[name], accept=accept.best())
    plain, without = run(2, **SETTINGS[name], accept=accept.best(), value_fn=loss, aux=None)
    chex.assert_trees_all_close(params, plain, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(info._replace(aux=None), without, rtol=1e-5)
    assert without.aux is None


def test_the_sum_is_that_of_numpy():
    seen = []

    def value_fn(params):
        return loss(params), {"w": params["w"]}

    def recorded(params):
        jax.debug.callback(lambda w: seen.append(np.array(w)), params["w"], ordered=True)
        return value_fn(params)

    aux = {"w": np.zeros((4, 6), np.float32)}
    # Ordered callbacks fail in JAX beside elites that are paged to the host.
    on_device = Execution(memory="device")
    _, info = run(value_fn=recorded, aux=aux, accept=accept.improved(), execution=on_device)
    jax.effects_barrier()
    assert len(seen) == info.evaluations == 9
    np.testing.assert_allclose(info.aux.total["w"], np.sum(seen, axis=0), rtol=1e-5, atol=1e-5)


def test_members_that_are_not_finite_are_no_best_but_are_counted():
    def value_fn(params):
        parent = jnp.isclose(params["w"][0, 0], -0.9891667, atol=1e-5)
        return jnp.where(parent, 1.0, jnp.nan), {"count": jnp.int32(1), "parent": parent}

    _, info = run(value_fn=value_fn, aux={"count": 0, "parent": False}, accept=accept.best())
    assert info.best_fitness == info.parent_fitness == 1.0
    assert info.aux.best["parent"] == 1
    assert info.aux.total["parent"] == 2  # and the child, for there is nobody to move it
    assert info.aux.total["count"] == 9


@pytest.mark.crossed(1)
@pytest.mark.parametrize("rule", ["improved", "best"])
def test_the_guard_is_counted_and_nothing_else_of_it_is_kept(rule):
    def guard(params):
        value, aux = with_itself(params)
        return 2 * value, {**aux, "params": jax.tree.map(jnp.zeros_like, params)}

    _, info = run(accept=ACCEPT[rule], extra={"accept_value_fn": guard})
    assert info.aux.total["count"] == info.evaluations + (3 if rule == "best" else 2)
    for found, fitness in (
        (info.aux.parent, info.parent_fitness),
        (info.aux.best, info.best_fitness),
        (info.aux.child, info.child_fitness),
    ):
        chex.assert_trees_all_close(loss(found["params"]), fitness, rtol=1e-5)


@pytest.mark.wide
def test_a_step_without_a_cycle_keeps_it_and_a_later_cycle_starts_anew():
    _, first = run(3, evolve_every=3)
    _, idle = run(4, evolve_every=3)
    chex.assert_trees_all_equal(first, idle)
    _, second = run(6, evolve_every=3)
    assert second.aux.total["count"] == second.evaluations


@pytest.mark.wide
def test_inside_of_scan_outside_of_jit_and_back_from_a_checkpoint():
    params, tx = params_of(), evolve(optax.sgd(0.1), **GROUND, aux=AUX)
    step = step_of(tx)

    def body(carry, _):
        return step(*carry), carry[1].info.aux.total["count"]

    start = params, tx.init(params)
    (scanned, state), counts = jax.jit(lambda start: lax.scan(body, start, length=3))(start)
    np.testing.assert_array_equal(counts, [0, 9, 9])
    eager = step(*step(*start))
    kept = serialization.from_bytes(eager[1], serialization.to_bytes(eager[1]))
    chex.assert_trees_all_equal(kept, eager[1])
    chex.assert_trees_all_close(step(eager[0], kept), (scanned, state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "pairs", "factored", "factored pairs"])
@pytest.mark.parametrize("rule", ["always", "best"])
@pytest.mark.wide
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_devices_that_divide_the_members_find_the_same(name, rule, axis_type):
    settings = {"population_size": 16, **SETTINGS[name], "accept": ACCEPT[rule]}
    _, expected = run(**settings)
    execution = settings.pop("execution", Execution())
    mesh = Layout({"pop": 4}, axis_type).mesh
    for given, context in ((mesh, "lanes"), (None, "mapped")):
        divided = Execution(evaluate=execution.evaluate, population_axis="pop", mesh=given)
        tx = evolve(optax.sgd(0.1), **{**GROUND, **settings, "aux": AUX, "execution": divided})
        whole = PartitionSpec()
        step = step_of(tx)
        if context == "mapped":
            step = jax.shard_map(step, mesh=mesh, in_specs=(whole, whole), out_specs=whole)
        start = jax.device_put((params_of(), tx.init(params_of())), NamedSharding(mesh, whole))
        _, state = jax.jit(step).lower(*start).compile(known("hurried"))(*start)
        chex.assert_trees_all_close(state.info, expected, rtol=1e-4, atol=1e-5)
        assert state.info.aux.total["count"] == state.info.evaluations


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_over_an_axis_of_samples_floats_are_averaged_and_counts_added_up(axis_type):
    mesh = Layout({"data": 4}, axis_type).mesh
    tx = evolve(optax.sgd(0.0), **GROUND, aux={"mean": 0.0, "count": 0},
                execution=Execution(axis_name="data"))  # fmt: skip

    def value_fn(params, x):
        return jnp.sum(params * x), {"mean": jnp.mean(x), "count": x.size}

    def step(params, state, x):
        return tx.update(jnp.zeros_like(params), state, params, value_fn=value_fn, x=x)[1].info.aux

    params, x = jnp.ones(2), jnp.arange(8.0)
    specs = PartitionSpec(), PartitionSpec(), PartitionSpec("data")
    x = jax.device_put(x, NamedSharding(mesh, specs[2]))
    aux = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(
        params, tx.init(params), x
    )
    assert aux.parent["mean"] == 3.5
    assert aux.parent["count"] == 8
    assert aux.total["count"] == 8 * 9


def test_it_is_wide_enough_to_be_added_up():
    aux = {"half": jnp.bfloat16(0.0), "byte": jnp.int8(0), "flag": False}
    _, info = run(
        value_fn=lambda params: (
            loss(params), {"half": jnp.bfloat16(0.1), "byte": jnp.int8(100), "flag": True}
        ),
        aux=aux,
    )  # fmt: skip
    assert info.aux.total["byte"] == 900
    assert info.aux.total["flag"] == 9
    np.testing.assert_allclose(info.aux.total["half"], 0.9, rtol=1e-2)


@pytest.mark.wide
def test_a_line_search_gets_the_fitness_alone():
    base = optax.lbfgs()
    tx = evolve(base, **GROUND, aux=AUX)
    params = params_of()
    state = tx.init(params)
    value, grads = jax.value_and_grad(loss)(params)
    _, state = tx.update(
        grads, state, params, value_fn=with_itself, value=value, grad=grads, evolve=True
    )
    assert state.info.aux.total["count"] == state.info.evaluations


def memory_of(population_size, **kwargs):
    def value_fn(params):
        return jnp.sum(params**2), {"history": params}

    params = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    # Of a rule that keeps no elites, whose buffers on the host a CPU counts too.
    tx = evolve(optax.sgd(0.1), evolve_every=2, population_size=population_size,
                recombine=recombine.centered_rank(), aux={"history": params}, **kwargs)  # fmt: skip
    state = jax.eval_shape(tx.init, params)

    def step(grads, state, params):
        return tx.update(grads, state, params, value_fn=value_fn)

    compiled = jax.jit(step, donate_argnums=1).lower(params, state, params).compile(known("read"))
    return compiled.memory_analysis().temp_size_in_bytes / (4 * 512 * 512)


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"generations": 8}, {"execution": Execution(candidate_batch_size=4)}],
    ids=["one by one", "generations", "batches"],
)
def test_memory_is_flat_in_the_population(kwargs):
    few, many = memory_of(8, **kwargs), memory_of(64, **kwargs)
    assert many < few + 0.1


def test_bad_examples_and_bad_results():
    params = params_of()

    def step(aux, value_fn):
        tx = evolve(optax.sgd(0.1), **GROUND, aux=aux)
        tx.update(params, tx.init(params), params, value_fn=value_fn)

    with pytest.raises(TypeError, match=r"`aux` must be a pytree of arrays.*'steps'.*eval_shape"):
        evolve(optax.sgd(0.1), aux={"of": "steps"})
    with pytest.raises(TypeError, match=r"return \(fitness, aux\) where `aux` is given"):
        step(AUX, loss)
    with pytest.raises(ValueError, match=r"`aux` must be like what `value_fn` returns.*count"):
        step({"counts": 0}, with_itself)
    with pytest.raises(ValueError, match=r"int32 of shape \(\) for float32 of shape \(\)"):
        step({"n": 0}, lambda params: (loss(params), {"n": loss(params)}))
    with pytest.raises(ValueError, match=r"float32 of shape \(\) for float32 of shape \(2,\)"):
        step({"n": 0.0}, lambda params: (loss(params), {"n": jnp.ones(2)}))
    with pytest.raises(TypeError, match=r"`value_fn` must return one scalar.*evolve\(\.\.\., aux="):
        step(None, with_itself)


def test_a_state_without_it_is_named():
    params = params_of()
    state = evolve(optax.sgd(0.1), **GROUND).init(params)
    tx = evolve(optax.sgd(0.1), **GROUND, aux=AUX)
    with pytest.raises(ValueError, match="`state.info` must be that of this optimizer"):
        tx.update(params, state, params, value_fn=with_itself)
