"""The compiled program: traced once, compiled once, donated, stable and initialised abstractly."""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, accept, egd, evolve, recombine

MEMORY = ("host", "device", "replay")
# Committed to a device: JAX commits what a program with host memory returns, and would
# compile a step that got uncommitted parameters first a second time.
DEVICE = jax.devices()[0]
PARAMS = jax.device_put({"w": jnp.ones((4, 3)), "b": jnp.zeros(3, jnp.bfloat16)}, DEVICE)


def loss(params):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"].astype(jnp.float32))


@pytest.mark.crossed(2)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("evolve_every", [1, 3])
def test_value_fn_is_traced_once(memory, evolve_every):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(loss, n=1)
    tx = evolve(
        optax.adam(0.1),
        evolve_every=evolve_every,
        population_size=16,
        execution=Execution(memory=memory),
    )
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=traced))
    state = tx.init(PARAMS)
    for _ in range(4):
        _, state = step(PARAMS, state, PARAMS)
    assert int(state.cycle) == 4 // evolve_every


def test_value_fn_may_close_over_what_the_step_traces():
    tx = egd(0.1, evolve_every=1)

    @jax.jit
    def step(params, state, target):
        traces = []

        def value_fn(params):
            traces.append(1)
            return jnp.sum((params - target) ** 2)

        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        assert len(traces) == 2  # the gradient's and the cycle's
        return optax.apply_updates(params, updates), state

    params = jnp.zeros(3)
    params, state = jax.device_put((params, tx.init(params)), DEVICE)
    for target in (1.0, 2.0):
        params, state = step(params, state, target)
    assert step._cache_size() == 1


@pytest.mark.crossed(3)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("reset_base", [False, True])
def test_one_compilation_and_a_stable_state(memory, reset_base):
    execution = Execution(memory=memory)
    tx = egd(0.1, momentum=0.9, evolve_every=2, execution=execution, reset_base=reset_base)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, first = PARAMS, jax.device_put(tx.init(PARAMS), DEVICE)
    state = first
    for _ in range(6):
        params, state = step(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
        chex.assert_trees_all_equal_shapes_and_dtypes(params, PARAMS)
    assert step._cache_size() == 1
    weak = [jax.typeof(leaf).weak_type for leaf in jax.tree.leaves((first, state))]
    assert not any(weak)


@pytest.mark.on_cpu
@pytest.mark.parametrize("memory", MEMORY)
def test_on_cpu_uncommitted_parameters_compile_once_too(memory):
    tx = egd(0.1, evolve_every=2, execution=Execution(memory=memory))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params, value_fn=jnp.sum)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert step._cache_size() == 1


@pytest.mark.wide
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("key", [0, "array"])
def test_params_and_state_may_be_donated(memory, key):
    key = jnp.array([0, 9], jnp.uint32) if key == "array" else key
    execution = Execution(memory=memory)
    tx = egd(0.1, momentum=0.9, evolve_every=2, execution=execution, key=key, reset_base=True)

    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
    kept, kept_state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
    donating, copying = jax.jit(step, donate_argnums=(0, 1)), jax.jit(step)
    for _ in range(4):
        consumed = jax.tree.leaves((params, state))
        params, state = donating(params, state)
        kept, kept_state = copying(kept, kept_state)
        assert any(leaf.is_deleted() for leaf in consumed)
    chex.assert_trees_all_equal((params, state), (kept, kept_state))
    tx.init(PARAMS)  # the key was not donated with the state


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("base", [optax.sgd(0.1), optax.adamw(0.1)], ids=["sgd", "adamw"])
def test_an_idle_step_makes_no_array_of_the_cycle(base, memory):
    """XLA would copy what a conditional passes on, and make what a cycle always needs before it."""
    params = {"w": jnp.ones((64, 48)), "v": jnp.ones((64, 48))}
    product = lambda p: jnp.sum(jnp.tanh(p["w"]) @ p["v"].T)  # noqa: E731

    def arrays(tx):
        def step(params, state):
            updates, state = tx.update(jax.grad(product)(params), state, params, value_fn=product)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params)).compile()
        entry = compiled.as_text().split("ENTRY ")[1]
        assert " conditional(" not in entry
        made = re.findall(r" = (\w+\[64,48\])\S* ([\w-]+)\(", entry)
        return {(shape, opcode) for shape, opcode in made if opcode not in ("dot", "fusion")}, {
            shape for shape, _ in made
        }

    tx = optax.with_extra_args_support(base)
    plain, shapes = arrays(tx)
    own, own_shapes = arrays(evolve(base, execution=Execution(memory=memory)))
    assert own - plain <= {("f32[64,48]", "get-tuple-element")}  # what the loop passes through
    assert own_shapes == shapes == {"f32[64,48]"}


def test_init_needs_only_shapes():
    tx = egd(0.1, momentum=0.9, mutable={"w": True, "b": False})
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    chex.assert_trees_all_equal(tx.init(abstract), tx.init(PARAMS))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, abstract), tx.init(PARAMS)
    )
    chex.assert_trees_all_equal(jax.jit(tx.init)(PARAMS), tx.init(PARAMS))


@pytest.mark.parametrize("memory", MEMORY)
def test_the_program_does_not_grow_with_the_population(memory):
    def size(population_size):
        tx = egd(
            0.1,
            evolve_every=1,
            population_size=population_size,
            recombine=recombine.mean(elite_fraction=2 / population_size),
            execution=Execution(memory=memory),
        )
        update = lambda g, s, p: tx.update(g, s, p, value_fn=loss)  # noqa: E731
        return len(str(jax.make_jaxpr(update)(PARAMS, tx.init(PARAMS), PARAMS)).splitlines())

    assert size(4) == size(64)


@pytest.mark.wide
def test_a_step_under_vmap_evolves_every_member_of_an_ensemble():
    tx = egd(0.1, evolve_every=2, sigma=0.3, accept=accept.always())
    quadratic = lambda p: jnp.sum((p - 1) ** 2)  # noqa: E731
    calls = []

    def value_fn(params):
        value = quadratic(params)
        jax.debug.callback(lambda _: calls.append(1), value)
        return value

    def step(params, state):
        updates, state = tx.update(jax.grad(quadratic)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    ensemble = jnp.arange(6.0).reshape(3, 2)
    states = jax.vmap(tx.init)(ensemble)
    together = jax.jit(jax.vmap(step))
    for evaluations in (0, 3 * 8):  # none on a step on which no cycle is due
        ensemble, states = jax.block_until_ready(together(ensemble, states))
        jax.effects_barrier()
        assert len(calls) == evaluations
    for member in range(3):
        params = jnp.arange(6.0).reshape(3, 2)[member]
        state = tx.init(params)
        for _ in range(2):
            params, state = jax.jit(step)(params, state)
        chex.assert_trees_all_close(ensemble[member], params, rtol=1e-5)
    chex.assert_trees_all_equal(states.cycle, jnp.ones(3, jnp.int32))
