"""Arguments that a user gives and that would be wrong in silence, or fail far from their cause."""

import math

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, callback, egd, evolve, is_due, noise, recombine

PARAMS = jnp.linspace(-1.0, 2.0, 8)


def loss(params):
    return jnp.sum((params - 0.3) ** 2)


def with_generation(params, generation):
    return loss(params) + generation


def with_base_state(params, base_state):
    return loss(params) + 0 * base_state[0].count


@pytest.mark.parametrize("role", ["value_fn", "accept_value_fn"])
@pytest.mark.parametrize(
    ("name", "fn"), [("generation", with_generation), ("base_state", with_base_state)]
)
def test_an_argument_that_would_hide_one_of_the_cycle_is_refused(role, name, fn):
    tx = evolve(optax.adam(0.1), evolve_every=1)
    functions = {"value_fn": loss, role: fn}
    with pytest.raises(TypeError, match=f"`{name}` must not be passed to `update`"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **functions, **{name: jnp.int32(77)})
    # It may have that name for others.
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss, **{name: jnp.int32(77)})


@pytest.mark.parametrize("evolve_every", [2**31, 10**12])
def test_an_interval_that_no_counter_reaches_is_refused(evolve_every):
    for make in (
        lambda n: egd(0.1, evolve_every=n),
        lambda n: evolve(optax.adam(1), evolve_every=n),
    ):
        with pytest.raises(ValueError, match="`evolve_every` must be below 2\\*\\*31"):
            make(evolve_every)


def test_the_largest_interval_is_never_due():
    tx = evolve(optax.sgd(0.1), evolve_every=2**31 - 1)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=loss)
    assert state.cycle == 0
    assert not is_due(jnp.int32(7), 2**31 - 1)


@pytest.mark.parametrize("sigma", [lambda cycle: 0.2 - 0.3 * cycle, lambda cycle: math.nan * cycle])
def test_a_schedule_that_gives_no_sigma_moves_nothing(sigma):
    tx = evolve(optax.set_to_zero(), evolve_every=1, sigma=sigma)
    state = tx.init(PARAMS)._replace(cycle=jnp.int32(3))
    updates, state = tx.update(PARAMS, state, PARAMS, value_fn=loss)
    assert not state.info.accepted
    assert state.info.sigma == 0
    assert (updates == 0).all()


MASKED = {
    "masked": np.ma.masked,
    "number": np.ma.array(-7.0, mask=True),
    "integer": np.ma.array(-7, mask=True),
    "float32": np.ma.array(np.float32(-7), mask=True),
}


@pytest.mark.parametrize("value", MASKED.values(), ids=MASKED)
def test_a_masked_number_of_numpy_is_the_worst(value):
    """An undefined metric: the number behind the mask means nothing."""
    tx = evolve(optax.sgd(0.1), evolve_every=1)
    value_fn = callback.host_value_fn(lambda params: value, on_error="raise")
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=value_fn)
    assert state.info.parent_fitness == jnp.inf
    assert not state.info.accepted


def test_of_a_batch_only_the_masked_members_are():
    def batched(params):
        return np.ma.array(((params - 0.3) ** 2).sum(-1), mask=np.arange(len(params)) == 0)

    tx = evolve(optax.sgd(0.1), evolve_every=1, execution=Execution(candidate_batch_size=4))
    value_fn = callback.host_value_fn(batched, batched=True)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=value_fn)
    assert jnp.isfinite(state.info.best_fitness)


@pytest.mark.parametrize("reset_base", [False, True])
def test_a_base_that_looks_at_numbers_runs_outside_of_jit(reset_base):
    """As it does alone: what it freezes cannot be found out, so that all leaves mutate."""

    def update(updates, state, params=None, *, objective, **extra):
        del updates, extra
        slope = (objective(params + 0.1) - objective(params - 0.1)) / 0.2
        return jnp.full_like(params, -0.01 * slope), state

    base = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    measure = lambda params: float(np.sum((np.asarray(params) - 2.0) ** 2))  # noqa: E731
    tx = evolve(base, evolve_every=1, sigma=0.2, reset_base=reset_base)
    value_fn = callback.host_value_fn(measure)
    updates, state = tx.update(
        PARAMS, tx.init(PARAMS), PARAMS, objective=measure, value_fn=value_fn
    )
    alone, _ = base.update(PARAMS, optax.EmptyState(), PARAMS, objective=measure)
    assert state.info.best_fitness <= measure(PARAMS + alone) + 1e-4
    assert (updates != alone).any() == state.info.accepted


SENT = {
    "default": {},
    "operators": {
        "noise": noise.low_rank(),
        "recombine": recombine.softmax(0.1),
        "accept": accept.improved(),
        "execution": Execution(memory="replay"),
    },
    "es_optimizer": {"es_optimizer": optax.adam(0.1), "reset_base": True},
}


@pytest.mark.parametrize("kwargs", SENT.values(), ids=SENT)
def test_an_optimizer_is_sent_to_a_worker_after_use(kwargs):
    tx = evolve(optax.adam(0.1), evolve_every=1, sigma=0.3, **kwargs)
    state = tx.init(PARAMS)
    for _ in range(2):
        expected, after = tx.update(PARAMS, state, PARAMS, value_fn=loss)
    again = cloudpickle.loads(cloudpickle.dumps(tx))
    found, after_again = again.update(PARAMS, state, PARAMS, value_fn=loss)
    np.testing.assert_array_equal(found, expected)
    assert jax.tree.structure(after_again) == jax.tree.structure(after)


@pytest.mark.parametrize("workers", [None, 2])
def test_so_is_a_host_function(workers):
    value_fn = callback.host_value_fn(lambda p: float(np.sum(p**2)), workers=workers)
    tx = evolve(optax.adam(0.1), evolve_every=1, sigma=0.3)
    expected, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=value_fn)
    again = cloudpickle.loads(cloudpickle.dumps(value_fn))
    found, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value_fn=again)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_parameters_that_a_wrapper_hands_on_in_another_form_are_named(jit):
    params = {"a": jnp.ones((2, 2)), "w": jnp.ones(3)}
    value_fn = lambda params: jnp.sum(params["a"] ** 2) + jnp.sum(params["w"])  # noqa: E731
    around = optax.flatten(evolve(optax.adam(0.01), evolve_every=1))
    with pytest.raises(TypeError) as caught:
        jit(lambda p: around.update(p, around.init(p), p, value_fn=value_fn))(params)
    assert "`optax.flatten`" in " ".join(caught.value.__notes__)
    inside = evolve(optax.flatten(optax.adam(0.01)), evolve_every=1)
    _, state = inside.update(params, inside.init(params), params, value_fn=value_fn)
    assert state.cycle == 1
