"""Cycles outside of `jax.jit`: compiled once, and never the program of another function."""

import contextlib
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import accept, egd, evolve

PARAMS = {"w": jnp.linspace(1.0, 2.0, 6).reshape(2, 3), "b": jnp.linspace(0.5, 1.5, 3)}
BATCHES = [jnp.full(3, float(at)) for at in range(4)]


def loss(params, batch=0.0):
    return jnp.sum(jnp.sin(3 * params["w"]) ** 2) + jnp.sum((params["b"] + 1 - batch) ** 2)


@contextlib.contextmanager
def compilations():
    """Collects what XLA compiles."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def optimizer(**kwargs):
    return egd(0.01, momentum=0.9, evolve_every=1, sigma=0.3, **kwargs)


def run(tx, value_fns):
    """A step a function; the parameters after each."""
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for value_fn in value_fns:
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def around(batch):
    return lambda params: loss(params, batch)


FUNCTIONS = {
    "the same": lambda batch: loss,
    "a lambda": lambda batch: lambda params: loss(params),
    "around an array": around,
    "around one of NumPy": lambda batch: around(np.asarray(batch)),
    "with relu": lambda batch: lambda params: loss(params, jax.nn.relu(batch)),
}


@pytest.mark.crossed(2)
@pytest.mark.on_cpu
@pytest.mark.parametrize("make", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_second_cycle_compiles_nothing(make):
    tx = optimizer(reset_base=True)
    run(tx, map(make, BATCHES[:2]))  # the operations of the base and of a reset, one by one
    with compilations() as found:
        run(tx, map(make, BATCHES))
    assert not found


@pytest.mark.on_cpu
def test_cycles_find_what_they_find_in_a_jitted_step():
    tx = optimizer()

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=around(batch))
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for batch, eager in zip(BATCHES, run(optimizer(), map(around, BATCHES)), strict=True):
        params, state = step(params, state, batch)
        chex.assert_trees_all_close(params, eager, rtol=1e-5)


@pytest.mark.on_cpu
def test_arguments_and_the_function_of_the_guard_are_known_too():
    tx = optimizer(generations=2)

    def functions(batch):
        value_fn = lambda params, batch, generation: loss(params, batch[generation])  # noqa: E731
        return {"value_fn": value_fn, "accept_value_fn": around(batch[0]), "batch": batch}

    def step(params, state, batch):
        updates, state = tx.update(params, state, params, **functions(batch))
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, tx.init(PARAMS), jnp.ones((2, 3)))
    with compilations() as found:
        again, state = step(params, state, jnp.zeros((2, 3)))
    assert not found
    expected, _ = jax.jit(step)(*step(PARAMS, tx.init(PARAMS), jnp.ones((2, 3))), jnp.zeros((2, 3)))
    chex.assert_trees_all_close(again, expected, rtol=1e-5, atol=1e-6)


def only_the_last_program_counts(make):
    """The parameters after a cycle on the second function, as of an optimizer that saw no other."""
    tx = optimizer(accept=accept.always())
    for function in map(make, (1.0, 5.0)):
        params = run(tx, [function])[-1]
    chex.assert_trees_all_equal(params, run(optimizer(accept=accept.always()), [make(5.0)])[-1])
    other = run(optimizer(accept=accept.always()), [make(1.0)])[-1]
    assert any(
        (one != two).any() for one, two in zip(*map(jax.tree.leaves, (params, other)), strict=True)
    )


@pytest.mark.wide
def test_what_a_jitted_function_holds_is_no_older_than_the_function():
    def make(number):
        held = jnp.full(3, number)
        return lambda params: jax.jit(lambda params: loss(params, held))(params)

    only_the_last_program_counts(make)


def test_a_program_that_is_kept_holds_no_batch():
    tx = optimizer()
    batch = jnp.full(3, 2.0)
    held = weakref.ref(batch)
    run(tx, [around(batch)])
    del batch
    gc.collect()
    assert held() is None


@pytest.mark.wide
def test_a_number_that_changed_is_not_taken_from_before():
    numbers = {}

    def value_fn(params):
        return loss(params, numbers["batch"])

    def make(number):
        numbers["batch"] = number
        return value_fn

    tx = optimizer(accept=accept.always())
    first, second = (run(tx, [make(number)])[-1] for number in (1.0, 5.0))
    chex.assert_trees_all_equal(second, run(optimizer(accept=accept.always()), [make(5.0)])[-1])
    assert (first["b"] != second["b"]).any()


@pytest.mark.wide
@pytest.mark.on_cpu
def test_a_function_that_is_called_back_is_the_one_that_was_passed():
    def make(number):
        def measured(params):
            return np.float32(np.sum((params["b"] - number) ** 2))

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return lambda params: jax.pure_callback(measured, shape, params)

    only_the_last_program_counts(make)


@pytest.mark.wide
def test_one_warning_says_what_to_write_where_every_cycle_is_another_program():
    tx = optimizer()
    with pytest.warns(UserWarning, match="Put the whole step into `jax.jit`") as warned:
        run(tx, [lambda params, at=at: loss(params) + at for at in range(4)])
    assert len(warned) == 1


@pytest.mark.wide
def test_other_functions_are_no_reason_to_warn():
    run(optimizer(), [lambda p: loss(p) * 2, lambda p: loss(p) * 3, lambda p: loss(p) * 4, loss])


def test_errors_are_those_of_a_jitted_step():
    tx = evolve(optax.sgd(0.1), evolve_every=1)
    with pytest.raises(ValueError, match="must return a scalar"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=lambda params: params["b"])
    with pytest.raises(TypeError, match="must return one scalar"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=lambda params: (0.0, params))


@pytest.mark.on_cpu
def test_the_same_function_called_back_is_compiled_once():
    def measured(params):
        return np.float32(np.sum(params["b"] ** 2))

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    tx = optimizer()
    run(tx, [lambda params: jax.pure_callback(measured, shape, params)])
    with compilations() as found:
        run(tx, [lambda params: jax.pure_callback(measured, shape, params)])
    assert not found
