"""Every mode that optax's optimizers work in: what is committed, cast, mapped, differentiated."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, accept, egd, evolve, noise, presets, recombine


def _loss(params):
    return jnp.sum((params - 2.0) ** 2)


def test_a_step_from_committed_parameters_and_state_compiles_once():
    compiled = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    tx = egd(1e-2, momentum=0.9, evolve_every=3)
    params = jnp.ones((3, 4))
    params, state = jax.device_put((params, tx.init(params)), jax.devices()[0])

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(_loss)(params), state, params, value_fn=_loss)
        return optax.apply_updates(params, updates), state

    jax.block_until_ready((params, state))
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for _ in range(4):
            params, state = step(params, state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiled) == 1


_STATES = {"floats cast to bfloat16": (False, False), "x64 after init": (False, True)}
_STATES["init under x64"] = (True, False)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("how", _STATES)
def test_a_state_keeps_the_dtypes_that_it_came_in_with(how, traced):
    at_init, at_update = _STATES[how]
    tx = evolve(optax.adam(1e-2), evolve_every=2)
    params = jnp.ones(4)
    with jax.enable_x64(at_init):
        state = tx.init(params)
    if "bfloat16" in how:
        state = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def step(state):
        return tx.update(jax.grad(_loss)(params), state, params, value_fn=_loss)[1]

    with jax.enable_x64(at_update):
        after = state
        for _ in range(2):
            after = (jax.jit(step) if traced else step)(after)
    assert int(after.cycle) == 1
    assert jnp.isfinite(after.info.parent_fitness)

    def dtypes(state):
        with jax.enable_x64(at_update):  # float64 is not to be had without
            return [
                jax.dtypes.canonicalize_dtype(leaf.dtype)
                for leaf in jax.tree.leaves((state.count, state.cycle, state.key_data, state.info))
            ]

    assert dtypes(after) == dtypes(state)


MATRIX = {"w": jnp.linspace(-1.0, 1.0, 48).reshape(8, 6), "b": jnp.zeros(6)}


def value_of(params):
    return sum(jnp.sum((leaf.astype(jnp.float32) - 0.5) ** 2) for leaf in jax.tree.leaves(params))


def on_a_mesh():
    mesh = jax.make_mesh((4,), ("pop",), axis_types=(jax.sharding.AxisType.Auto,))
    return {"execution": Execution(population_axis="pop", mesh=mesh)}


SETTINGS = {
    "default": dict,
    "low rank": lambda: {"noise": noise.low_rank()},
    "metric": presets.metric,
    "safe": presets.safe,
    "search": lambda: {**presets.global_search(0.1, 4), "generations": 2},
    "batches": lambda: {"execution": Execution(candidate_batch_size=2)},
    "replay": lambda: {"execution": Execution(memory="replay"), "generations": 2},
    "softmax": lambda: {
        "recombine": recombine.softmax(),
        "es_optimizer": optax.sgd(0.5),
        "accept": accept.improved(),
    },
    "schedule": lambda: {"sigma": optax.linear_schedule(0.1, 0.0, 10), "reset_base": True},
    "devices": on_a_mesh,
    "guard": lambda: {"guard": True},
}


def make_step(kwargs, dtype):
    """A step, its parameters and its state."""
    kwargs = dict(kwargs)
    extra = {"accept_value_fn": value_of} if kwargs.pop("guard", False) else {}
    tx = evolve(optax.sgd(0.1, momentum=0.9), **{**kwargs, "evolve_every": 2})
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), MATRIX)

    def step(params, state):
        grads = jax.tree.map(lambda leaf: (0.1 * leaf.astype(jnp.float32)).astype(dtype), params)
        updates, state = tx.update(grads, state, params, value_fn=value_of, **extra)
        return optax.apply_updates(params, updates), state

    return step, params, tx.init(params)


def run(kwargs, dtype=jnp.float32, *, jit=True):
    step, params, state = make_step(kwargs, dtype)
    step = jax.jit(step) if jit else step
    for _ in range(2):
        params, state = step(params, state)
    assert int(state.cycle) == 1
    return params, state


@pytest.mark.crossed(2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
def test_strict_promotion_makes_the_same_program(name, dtype):
    def program():
        step, *arguments = make_step(SETTINGS[name](), dtype)
        return jax.jit(step).lower(*arguments).as_text()

    expected = program()
    with jax.numpy_dtype_promotion("strict"):
        assert program() == expected


@pytest.mark.crossed(1)
@pytest.mark.parametrize("name", ["default", "metric"])
def test_strict_promotion_outside_of_jit(name):
    expected = run(SETTINGS[name](), jit=False)
    with jax.numpy_dtype_promotion("strict"):
        chex.assert_trees_all_equal(run(SETTINGS[name](), jit=False), expected)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(("name", "jit"), [("default", True), ("default", False), ("metric", True)])
def test_infinities_and_nans_that_jax_looks_for_are_not_ours(name, jit):
    expected = run(SETTINGS[name](), jit=jit)
    with jax.debug_infs(True), jax.debug_nans(True):
        found = run(SETTINGS[name](), jit=jit)
        before = evolve(optax.sgd(0.1)).init(MATRIX).info
    # What stands for a fitness that was not evaluated, where there may be no infinity.
    finite = lambda x: jnp.minimum(x, largest) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    largest = float(jnp.finfo(jnp.bfloat16).max)
    chex.assert_trees_all_equal(found, jax.tree.map(finite, expected))
    assert before.best_fitness > 1e38


def trains(dtype):
    """Whether optax's SGD does, from numbers of both signs and zero."""
    tx, params = optax.sgd(0.5), jnp.array([-1.0, 0.0, 2.0]).astype(dtype)
    updates, _ = tx.update(jnp.array([1.0, 0.0, 1.0]).astype(dtype), tx.init(params), params)
    landed = optax.apply_updates(params, updates).astype(jnp.float32)
    return bool((landed == jnp.array([-1.5, 0.0, 1.5])).all())


# Not those named fnuz, whose bits of a negative zero are NaN: XLA:CPU made such numbers in one of
# many runs.
LOW = [
    name
    for name in dir(jnp)
    if name.startswith(("float8", "bfloat16", "float16"))
    and not name.endswith("fnuz")
    and trains(getattr(jnp, name))
]


def test_low_precision_of_many_kinds_is_tried():
    assert {"bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"} <= set(LOW)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *((dtype, "default") for dtype in LOW),
        *(
            (dtype, name)
            for dtype in ("bfloat16", "float8_e4m3fn")
            for name in ("low rank", "metric", "batches")
        ),
    ],
)
def test_what_sgd_trains_evolves(dtype, name):
    dtype = getattr(jnp, dtype)
    params, state = run({**SETTINGS[name](), "sigma": 0.5, "accept": accept.always()}, dtype)
    step, idle, alone = make_step({"accept": accept.always(), "sigma": 0.0}, dtype)
    for _ in range(2):
        idle, alone = step(idle, alone._replace(count=jnp.int32(0)))
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(dtype)}
    assert bool(state.info.accepted)
    assert (params["w"] != idle["w"]).mean() > 0.2
    assert jnp.isfinite(value_of(params))
