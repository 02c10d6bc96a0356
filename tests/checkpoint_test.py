"""A resumed run is the uninterrupted one, to the bit."""

from pathlib import Path

import chex
from flax import serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from states import make
from states.make import advance, loss

from egd_optax import Execution, evolve, noise

STATES = sorted((Path(__file__).parent / "states").glob("*.msgpack"))
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3, jnp.bfloat16)}


def optimizer(memory="host", base=None, **kwargs):
    base = optax.adam(0.01) if base is None else base
    return evolve(
        base,
        evolve_every=3,
        sigma=0.1,
        execution=Execution(memory=memory),
        key=jax.random.key(5),
        **kwargs,
    )


@pytest.mark.wide
@pytest.mark.parametrize("target", ["concrete", "abstract"])
@pytest.mark.parametrize("memory", ["host", "device", "replay"])
def test_orbax_resumes_in_the_middle_of_an_interval(tmp_path, memory, target):
    tx = optimizer(memory)
    params, state = jax.device_put((PARAMS, tx.init(PARAMS)), jax.devices()[0])
    params, state = advance(tx, params, state, 4)  # one cycle, and a step
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step4", {"params": params, "state": state})
    expected = advance(tx, params, state, 5)

    fresh = optimizer(memory)
    blank = {"params": jax.tree.map(jnp.zeros_like, PARAMS), "state": fresh.init(PARAMS)}
    if target == "abstract":
        blank = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "step4", blank)
    chex.assert_trees_all_equal(restored["state"], state)
    resumed = advance(fresh, restored["params"], restored["state"], 5)
    chex.assert_trees_all_equal(resumed, expected)
    assert int(resumed[1].cycle) == 3


@pytest.mark.parametrize("made", [noise.gaussian(), noise.low_rank(), noise.separable()], ids=repr)
def test_flax_serialization_round_trips_the_state(made):
    tx = optimizer(noise=made)
    params, state = advance(tx, PARAMS, tx.init(PARAMS), 4)
    data = serialization.to_bytes(state)
    restored = serialization.from_bytes(tx.init(PARAMS), data)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    chex.assert_trees_all_equal(advance(tx, params, restored, 3), advance(tx, params, state, 3))


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    saved, other = optimizer(), optimizer(base=optax.sgd(0.1, momentum=0.9))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "adam", saved.init(PARAMS))
    with (
        ocp.StandardCheckpointer() as checkpointer,
        pytest.raises(ValueError, match="base_state|structure|match"),
    ):
        checkpointer.restore(tmp_path / "adam", other.init(PARAMS))
    with pytest.raises(ValueError, match="trace|names|field"):
        serialization.from_bytes(other.init(PARAMS), serialization.to_bytes(saved.init(PARAMS)))


def test_states_of_earlier_versions_are_there():
    assert {path.stem.split("_")[1] for path in STATES} == make.optimizers().keys()


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_a_run_that_an_earlier_version_stored_goes_on(path):
    tx = make.optimizers()[path.stem.split("_")[1]]
    start = make.PARAMS, tx.init(make.PARAMS)
    restored = serialization.from_bytes(start, path.read_bytes())
    assert int(restored[1].count) == make.STEPS
    resumed = advance(tx, *restored, 5)
    whole = advance(tx, *start, make.STEPS + 5)
    # Other versions of JAX round in other ways.
    chex.assert_trees_all_close(resumed, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jit", [jax.jit, lambda step: step], ids=["jit", "eager"])
@pytest.mark.parametrize(
    ("base", "params", "difference"),
    [
        (optax.sgd(0.1, momentum=0.9), PARAMS, r"`base_state\[0\]\.count` is missing"),
        (None, {"b": PARAMS["b"]}, r"`base_state\[0\]\.mu\['w'\]` is missing"),
        (None, {**PARAMS, "c": jnp.ones(2)}, r"`base_state\[0\]\.mu\['c'\]` is none of its own"),
        (
            None,
            {**PARAMS, "w": jnp.ones((5, 3))},
            r"`base_state\[0\]\.mu\['w'\]` has the shape \[5, 3\], not \[4, 3\]",
        ),
    ],
    ids=["base", "lacks a leaf", "another leaf", "shape"],
)
def test_a_state_of_another_base_is_named(base, params, difference, jit):
    tx, state = optimizer(), optimizer(base=base).init(params)
    with pytest.raises(ValueError, match=f"^`state` must be .* whose {difference}: restore"):
        jit(lambda state: tx.update(PARAMS, state, PARAMS, value_fn=loss))(state)


def test_errors_of_a_base_whose_state_fits_are_its_own():
    def fail(updates, state, params=None):
        raise RuntimeError("its own")

    tx = optimizer(base=optax.GradientTransformation(optax.adam(0.1).init, fail))
    state = tx.init(PARAMS)
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state.base_state)  # but fits
    state = state._replace(base_state=cast)
    with pytest.raises(RuntimeError, match="its own"):
        tx.update(PARAMS, state, PARAMS, value_fn=loss)


def test_a_state_that_does_not_fit_is_named():
    plain, stepped = optimizer(), evolve(optax.adam(0.01), es_optimizer=optax.adam(0.01))
    refused = r"`state.strategy_state.es_optimizer` must be that of .*: call `tx.init\(params\)`"
    with pytest.raises(ValueError, match=refused):
        stepped.update(PARAMS, plain.init(PARAMS), PARAMS, value_fn=loss)
    state = serialization.to_state_dict(plain.init(PARAMS))
    with pytest.raises(TypeError, match="`state` must be an EvolveState, got dict: restore it"):
        plain.update(PARAMS, state, PARAMS, value_fn=loss)
    # Flax names the fields.
    del state["info"]["sigma"]
    with pytest.raises(ValueError, match="sigma"):
        serialization.from_state_dict(plain.init(PARAMS), state)
