"""A run goes on where its checkpoint is restored: on its mesh, on another one, on one device."""

import contextlib
import functools

import chex
from flax import serialization
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np
import optax
from optax import contrib
import orbax.checkpoint as ocp
import pytest

from egd_optax import evolve, noise
from egd_optax.checkpoint import abstract_state
from xla_options import known

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
AXIS_TYPES = pytest.mark.parametrize("axis_type", [EXPLICIT, AUTO], ids=["explicit", "auto"])
# One leaf is drawn in its use, two are in stacks of small ones.
SHAPES = {"large": (256, 160), "small": (8, 5), "whole": (3,)}
ROWS, WHOLE = PartitionSpec("fsdp"), PartitionSpec()
SPECS = {"large": ROWS, "small": ROWS, "whole": WHOLE}
STEPS = 3  # the middle of an interval


def optimizer(base=None, **kwargs):
    base = optax.adam(0.01) if base is None else base
    settings = {"es_optimizer": optax.adam(0.1), "noise": noise.separable()}
    return evolve(base, evolve_every=2, **settings, **kwargs)


TX = optimizer()


def loss(params):
    return sum(jnp.mean((leaf - 0.3) ** 2) for leaf in params.values())


def values():
    draw = np.random.default_rng(0).normal
    return {name: draw(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def shardings_on(count, axis_type=AUTO):
    """Those of the parameters on so many devices; on the last device alone if it is 1."""
    if count == 1:
        return dict.fromkeys(SHAPES, SingleDeviceSharding(jax.devices()[-1]))
    mesh = jax.make_mesh(
        (count,), ("fsdp",), devices=jax.devices()[:count], axis_types=(axis_type,)
    )
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def structs_on(count, axis_type=AUTO):
    return {
        name: jax.ShapeDtypeStruct(SHAPES[name], jnp.float32, sharding=sharding)
        for name, sharding in shardings_on(count, axis_type).items()
    }


def params_on(count, axis_type=AUTO):
    return jax.device_put(values(), shardings_on(count, axis_type))


def within(params):
    """The context of a mesh of explicit axes."""
    sharding = jax.tree.leaves(params)[0].sharding
    is_explicit = isinstance(sharding, NamedSharding) and EXPLICIT in sharding.mesh.axis_types
    return jax.set_mesh(sharding.mesh) if is_explicit else contextlib.nullcontext()


def run(params, state, steps=STEPS):
    """Some steps of one program, on the devices of the parameters."""

    @functools.partial(jax.jit, compiler_options=known("hurried"))
    def step(params, state):
        updates, state = TX.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    with within(params):
        for _ in range(steps):
            # One at a time: XLA:CPU runs out of threads where steps that communicate pile up.
            params, state = jax.block_until_ready(step(params, state))
    return params, state


@functools.cache
def saved(count, axis_type):
    """A run in the middle, and the same at its end."""
    params = params_on(count, axis_type)
    middle = run(params, TX.init(params))
    assert int(middle[1].cycle) == 1
    return middle, run(*middle)


def through_orbax(folder, tree, like):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "run", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "run", like)


def assert_sharded_like(tree, like):
    def check(path, leaf, like):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), jax.tree_util.keystr(path)

    jax.tree.map_with_path(check, tree, like)


# A run through a checkpoint.


@pytest.mark.crossed(3)
@AXIS_TYPES
@pytest.mark.parametrize(("before", "after"), [(8, 8), (8, 4), (8, 1), (1, 8)])
def test_a_run_goes_on_where_the_template_is(tmp_path, before, after, axis_type):
    middle, end = saved(before, axis_type)
    structs = structs_on(after, axis_type)
    like = structs, abstract_state(TX, structs)
    restored = through_orbax(tmp_path, middle, like)
    chex.assert_trees_all_equal(restored, middle)
    assert_sharded_like(restored, like)
    resumed = run(*restored)
    assert int(resumed[1].cycle) == int(end[1].cycle) == 3
    if before == after:
        chex.assert_trees_all_equal(resumed, end)
    else:
        chex.assert_trees_all_close(resumed, end, rtol=1e-4, atol=2e-5)


@pytest.mark.crossed(2)
@AXIS_TYPES
@pytest.mark.parametrize("after", [8, 4, 1])
def test_what_init_returns_is_a_template_too(tmp_path, after, axis_type):
    middle, end = saved(8, axis_type)
    params = params_on(after, axis_type)
    restored = through_orbax(tmp_path, middle, (params, TX.init(params)))
    assert_sharded_like(restored[1], abstract_state(TX, params))
    chex.assert_trees_all_close(run(*restored), end, rtol=1e-4, atol=2e-5)


@pytest.mark.crossed(1)
@AXIS_TYPES
@pytest.mark.parametrize("placed", [False, True])
def test_numbers_of_numpy_go_on_too(placed, axis_type):
    """Flax gives arrays of NumPy back, wherever the arrays were."""
    middle, end = saved(8, axis_type)
    start = jax.tree.map(np.zeros_like, middle)
    params, state = serialization.from_bytes(start, serialization.to_bytes(middle))
    params = jax.device_put(params, shardings_on(4, axis_type))
    if placed:
        like = abstract_state(TX, params)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, like))
    chex.assert_trees_all_close(run(params, state), end, rtol=1e-4, atol=2e-5)


def test_moments_may_be_sharded_in_another_way(tmp_path):
    """ZeRO-1: each device has all parameters, and its share of the moments."""
    middle, end = saved(8, AUTO)
    rows = structs_on(8)
    whole = {name: leaf.update(sharding=rows["whole"].sharding) for name, leaf in rows.items()}
    restored = through_orbax(tmp_path, middle, (whole, abstract_state(TX, rows)))
    assert restored[1].base_state[0].nu["large"].addressable_shards[0].data.shape == (32, 160)
    chex.assert_trees_all_close(run(*restored), end, rtol=1e-4, atol=2e-5)


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.adafactor(0.1, min_dim_size_to_factor=4), tx),
        lambda tx: optax.masked(tx, {"large": True, "small": True, "whole": False}),
        lambda tx: optax.chain(optax.scale_by_schedule(lambda count: 1.0), tx),
        lambda tx: optax.inject_hyperparams(
            lambda rate: optax.chain(optax.scale(rate), tx), hyperparam_dtype=jnp.float32
        )(1.0),
        lambda tx: optax.partition(
            {"own": tx, "sgd": optax.sgd(0.1, momentum=0.9)},
            {"large": "own", "small": "own", "whole": "sgd"},
        ),
    ],
    ids=["adafactor", "masked", "schedule", "inject_hyperparams", "partition"],
)
def test_the_state_of_a_wrapper_goes_on_too(tmp_path, wrap):
    tx, params, other = wrap(TX), params_on(8), params_on(4)

    @functools.partial(jax.jit, compiler_options=known("hurried"))
    def step(params, state):
        return tx.update(params, state, params, value_fn=own_loss)

    def own_loss(params):  # of the leaves that the optimizer sees
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(params))

    def steps(state, params):
        for _ in range(2):
            updates, state = jax.block_until_ready(step(params, state))
        return updates, state

    _, middle = steps(tx.init(params), params)
    restored = through_orbax(tmp_path, middle, abstract_state(tx, other))
    chex.assert_trees_all_close(steps(restored, other), steps(middle, params), rtol=1e-4, atol=2e-5)


# The template is what `init` makes.

BASES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
    "noisy_sgd": optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "lbfgs": optax.lbfgs(memory_size=2),
    "schedule_free": contrib.schedule_free_adamw(0.1),
    "muon": contrib.muon(0.1),
    "prodigy": contrib.prodigy(),
    "evolve": TX,
}


@AXIS_TYPES
@pytest.mark.parametrize("count", [8, 1])
@pytest.mark.parametrize("base", BASES)
def test_a_template_has_shapes_dtypes_and_shardings_of_the_state(base, count, axis_type):
    tx, params = optimizer(BASES[base]), params_on(count, axis_type)
    state = tx.init(params)
    for like in (abstract_state(tx, params), abstract_state(tx, structs_on(count, axis_type))):
        chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
        assert_sharded_like(state, like)


@AXIS_TYPES
@pytest.mark.parametrize("count", [8, 1])
def test_a_state_is_on_the_devices_of_the_parameters_with_the_same_values(count, axis_type):
    params = params_on(count, axis_type)
    state = TX.init(params)
    assert all(leaf.committed for leaf in jax.tree.leaves(state))
    devices = {frozenset(leaf.sharding.device_set) for leaf in jax.tree.leaves((params, state))}
    assert len(devices) == 1
    chex.assert_trees_all_equal(state, TX.init(values()))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_the_state_of_parameters_that_are_nowhere_is_nowhere(array):
    """JAX moves uncommitted arrays to whatever takes them."""
    state = TX.init(jax.tree.map(array, values()))
    assert not any(leaf.committed for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("count", [8, 1])
def test_a_step_is_compiled_once(count):
    """The second step gets what the first one returns."""
    params = params_on(count)
    state = TX.init(params)
    step = jax.jit(
        lambda state: TX.update(params, state, params, value_fn=loss)[1],
        compiler_options=known("hurried"),
        donate_argnums=0,  # each leaf is a buffer of its own
    )
    for _ in range(3):
        state = jax.block_until_ready(step(state))
    assert step._cache_size() == 1


@AXIS_TYPES
def test_init_is_traced_and_mapped_as_before(axis_type):
    params = params_on(8, axis_type)
    state = TX.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(TX.init, params), state)
    with jax.set_mesh(params["whole"].sharding.mesh):
        chex.assert_trees_all_equal(jax.jit(TX.init)(params), state)
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: optimizer(key=key).init(params))(keys)
    np.testing.assert_array_equal(many.key_data, jax.random.key_data(keys))
    assert many.count.shape == (3,)


@AXIS_TYPES
def test_jit_makes_the_state_in_the_shardings_of_a_template(axis_type):
    params = params_on(8, axis_type)
    like = abstract_state(TX, params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    with jax.set_mesh(params["whole"].sharding.mesh):
        state = jax.jit(TX.init, out_shardings=shardings)(params)
    assert_sharded_like(state, like)
    chex.assert_trees_all_equal(state, TX.init(params))


@AXIS_TYPES
def test_the_mesh_of_the_context_does_not_matter(axis_type):
    structs = structs_on(4, axis_type)
    like = jax.tree.leaves(abstract_state(TX, structs))
    for mesh in (structs["whole"].sharding.mesh, jax.make_mesh((2, 4), ("a", "b"))):
        with jax.set_mesh(mesh):
            assert jax.tree.leaves(abstract_state(TX, structs)) == like


def test_a_leaf_that_is_nowhere_is_whole_on_the_mesh():
    params = {**params_on(8), "number": 1.0, "numpy": np.ones(3), "uncommitted": jnp.ones(3)}
    state = abstract_state(TX, params)
    mu = state.base_state[0].mu
    assert mu["large"].sharding.spec[0] == "fsdp"
    assert all(mu[name].sharding.is_fully_replicated for name in params if name not in SHAPES)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}


def test_uncommitted_parameters_are_on_their_device():
    state = abstract_state(TX, jax.tree.map(jnp.asarray, values()))
    devices = {SingleDeviceSharding(jax.devices()[0])}
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == devices


def test_functions_in_a_state_stay():
    def init(params):
        return {"mu": jax.tree.map(jnp.zeros_like, params), "activation": jax.nn.relu}

    tx = optimizer(optax.GradientTransformation(init, optax.identity().update))
    state = abstract_state(tx, structs_on(8)).base_state
    assert state["activation"] is jax.nn.relu
    assert state["mu"]["large"].sharding.spec[0] == "fsdp"


def flat(params):
    return {"flat": jnp.concatenate([leaf.reshape(-1) for leaf in params.values()])}


REFUSED = {
    "no optimizer": (optax.adam, structs_on, "`tx` must be an optax.GradientTransformation"),
    "no sharding": (
        TX,
        lambda _: {"w": jax.ShapeDtypeStruct((3,), jnp.float32)},
        r"`params\['w'\]` must say where it is, got .* without a sharding: pass",
    ),
    "numpy": (TX, lambda _: values(), "`params` must be on one mesh .*, got none: call"),
    "two meshes": (
        TX,
        lambda _: {**params_on(8), "other": params_on(4)["small"]},
        "`params` must be on one mesh or one device, got .*'fsdp': 8",
    ),
    "no rule": (
        optax.GradientTransformation(flat, lambda updates, state, params=None: (updates, state)),
        structs_on,
        "`tx` must have an `init` that JAX can shard, got ShardingTypeError: write the shardings",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cannot_be_made_is_refused(case):
    tx, params, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        abstract_state(tx, params(8))


def test_errors_of_init_are_its_own():
    with pytest.raises(ValueError, match="`mutable` leaves no floating-point parameter"):
        abstract_state(optimizer(mutable=lambda params: False), structs_on(8))
