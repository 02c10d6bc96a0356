"""Bad input raises an error that names the argument, the value and the fix."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax
import pytest

from egd_optax import STATIC_ARGS, egd, evolve, is_due

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
MESH = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"evolve_every": 0}, ValueError, "`evolve_every` must be at least 1, got 0"),
        ({"evolve_every": 2.0}, TypeError, "`evolve_every` must be a Python int, got 2.0"),
        ({"evolve_every": True}, TypeError, "`evolve_every` must be a Python int, got True"),
        ({"population_size": 0}, ValueError, "`population_size` must be at least 1, got 0"),
        ({"population_size": 8.5}, TypeError, "`population_size` must be a Python int, got 8.5"),
        ({"population_size": jnp.int32(8)}, TypeError, "`population_size`.*static_args"),
        ({"elite_fraction": 0}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 0"),
        ({"elite_fraction": 1.5}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 1.5"),
        ({"elite_fraction": "half"}, TypeError, "`elite_fraction` must be a real number, got 'half'"),
        ({"elite_fraction": jnp.float32(0.5)}, TypeError, "`elite_fraction`.*static_args"),
        ({"elite_fraction": float("nan")}, ValueError, "`elite_fraction`.*got nan"),
        ({"candidate_batch_size": 0}, ValueError, "`candidate_batch_size` must be at least 1, got 0"),
        ({"candidate_batch_size": 9}, ValueError, r"at most `population_size` \(8\), got 9"),
        ({"antithetic": 1}, TypeError, "`antithetic` must be True or False, got 1"),
        ({"antithetic": True, "population_size": 9}, ValueError, "`population_size` must be even .* got 9"),
        ({"antithetic": True, "candidate_batch_size": 3}, ValueError, "must be 1 or even .* got 3"),
        ({"generations": 0}, ValueError, "`generations` must be at least 1, got 0"),
        ({"generations": jnp.int32(2)}, TypeError, "`generations`.*static_args"),
        ({"recombine_step": 0.0}, ValueError, "`recombine_step` must be finite and above 0, got 0.0"),
        ({"noise": "cauchy"}, ValueError, '`noise` must be "full_rank" or "low_rank", got'),
        ({"noise": "low_rank", "rank": 0}, ValueError, "`rank` must be at least 1, got 0"),
        ({"rank": 2}, ValueError, '`rank` is that of `noise="low_rank"`, got 2'),
        ({"sigma": -0.1}, ValueError, "`sigma` must be finite and at least 0, got -0.1"),
        ({"sigma": float("inf")}, ValueError, "`sigma` must be finite and at least 0, got inf"),
        ({"sigma": None}, TypeError, "`sigma` must be a real number, got None"),
        ({"relative_sigma": 1}, TypeError, "`relative_sigma` must be True or False, got 1"),
        ({"min_scale": -1.0}, ValueError, "`min_scale` must be finite and at least 0, got -1.0"),
        ({"recombine": "median"}, ValueError, '`recombine` must be "mean" or "softmax" or .* a callable'),
        ({"temperature": 0.0}, ValueError, "`temperature` must be finite and above 0, got 0.0"),
        ({"accept": "never"}, ValueError, '`accept` must be "always" or "improved" or "best", got'),
        ({"accept": None}, ValueError, "`accept` must be .* got None"),
        ({"reset_base": None}, TypeError, "`reset_base` must be True or False, got None"),
        ({"memory": "disk"}, ValueError, '`memory` must be "host" or "device" or "replay", got'),
        ({"axis_name": 3}, TypeError, "`axis_name` must be the name of a mapped axis.*got 3"),
        ({"population_axis": ("pop", "more")}, TypeError, "`population_axis` must be the name of one axis, got"),
        ({"population_axis": "pop", "axis_name": ("data", "pop")}, ValueError, "not be one of `axis_name`, got 'pop' for both"),
        ({"mesh": MESH}, ValueError, "`mesh` is that of `population_axis`, got Mesh.*without one"),
        ({"mesh": 8, "population_axis": "pop"}, TypeError, "`mesh` must be a jax.sharding.Mesh, got 8"),
        ({"key": 0.5}, TypeError, "`key` must be an int or a jax PRNG key, got 0.5"),
        ({"key": "seed"}, TypeError, "`key` must be an int or a jax PRNG key, got 'seed'"),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "`key` must be a single threefry key"),
        ({"key": jax.random.split(jax.random.key(0))}, ValueError, "`key` must be a single"),
        ({"key": jnp.zeros(4, jnp.uint32)}, ValueError, r"`key` must be an int.*uint32 \[4\]"),
        ({"key": jnp.float32(1)}, ValueError, "`key` must be an int.*float32"),
    ],
)  # fmt: skip
def test_constructor_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        evolve(optax.sgd(0.1), **kwargs)
    with pytest.raises(error, match=message):
        egd(0.1, **kwargs)


@pytest.mark.parametrize(
    ("base", "fix"), [(optax.sgd, "call it first"), (0.1, "pass an optax optimizer"), (None, "pass")]
)  # fmt: skip
def test_a_base_that_is_no_optimizer(base, fix):
    with pytest.raises(TypeError, match=f"`base` must be an optax.*got .*{fix}"):
        evolve(base)


def update(tx, params=PARAMS, **kwargs):
    return tx.update(PARAMS, tx.init(PARAMS), params, **kwargs)


def test_update_needs_params():
    with pytest.raises(ValueError, match="`params` must be passed to `update`, got None"):
        update(egd(0.1), params=None, value_fn=lambda p: p["w"].sum())


@pytest.mark.parametrize("decide", [None, True])
def test_update_needs_a_value_fn(decide):
    with pytest.raises(TypeError, match="`value_fn` must be passed to `update`, got None"):
        update(egd(0.1), evolve=decide)
    with pytest.raises(TypeError, match="`value_fn` must be a function of the parameters, got 3.0"):
        update(egd(0.1), evolve=decide, value_fn=3.0)
    with pytest.raises(TypeError, match="`accept_value_fn` must be a function of .* got 3.0"):
        update(egd(0.1), evolve=decide, value_fn=jnp.sum, accept_value_fn=3.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"axis_name": "data"}, "`axis_name` must name a mapped axis, got 'data' outside of any"),
        ({"population_axis": "pop"}, "`population_axis` needs a mesh, got 'pop' without one: pass"),
        ({"population_axis": "pup", "mesh": MESH}, r"an axis of the mesh, got 'pup'.*has \('pop',\)"),
        (
            {"population_axis": "pop", "mesh": MESH, "population_size": 7},
            "`population_size` must be at least 8 on 8 devices, got 7: raise it, or make the axis 'pop'",
        ),
        (
            {"population_axis": "pop", "mesh": MESH, "population_size": 14, "antithetic": True},
            "must be at least 16 on 8 devices, two on each, for a pair shares its noise, got 14",
        ),
    ],
)  # fmt: skip
def test_axes_of_devices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        update(egd(0.1, evolve_every=1, **kwargs), value_fn=lambda p: p["w"].sum())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"axis_name": "date"}, "`axis_name` must name a mapped axis, got 'date'"),
        ({"population_axis": "pop"}, r"an axis of the mesh, got 'pop'.*has \('data',\)"),
    ],
)
def test_an_unknown_axis_inside_of_shard_map(kwargs, message):
    tx = egd(0.1, evolve_every=1, **kwargs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @jax.shard_map(mesh=mesh, in_specs=(), out_specs=PartitionSpec())
    def step():
        return update(tx, value_fn=lambda p: p["w"].sum())[0]

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step)


@pytest.mark.parametrize("what", ["parameters", "samples"])
def test_one_axis_for_members_and_for_shards(what):
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Explicit,))
    tx = egd(0.1, evolve_every=1, population_axis="pop")
    with jax.set_mesh(mesh):
        sharded = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("pop")))
        whole = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec()))
        params, batch = (sharded, whole) if what == "parameters" else (whole, sharded)
        with pytest.raises(ValueError, match=f"`population_axis` must not shard {what}, got 'pop'"):
            tx.update(params, tx.init(params), params, value_fn=jnp.sum, batch=batch)


def test_a_guard_needs_a_rule_that_compares():
    with pytest.raises(ValueError, match="`accept_value_fn` must be left out with accept='always'"):
        update(egd(0.1, accept="always"), value_fn=jnp.sum, accept_value_fn=jnp.sum)


def test_a_value_fn_dropped_on_the_way_is_missed():
    def drops(params):
        return optax.GradientTransformation(
            tx.init, lambda grads, state, params=None: tx.update(grads, state, params)
        )

    tx = egd(0.1)
    outer = optax.chain(drops(PARAMS), optax.scale(1.0))
    with pytest.raises(TypeError, match="a wrapper around this optimizer dropped it"):
        outer.update(PARAMS, outer.init(PARAMS), PARAMS, value_fn=lambda p: p["w"].sum())


@pytest.mark.parametrize(
    ("value_fn", "error", "message"),
    [
        (lambda p: p["w"], ValueError, r"`value_fn` must return a scalar, got shape \(2, 3\)"),
        (lambda p: p["w"][:1, 0], ValueError, r"must return a scalar, got shape \(1,\).*jnp.mean"),
        (lambda p: (p["w"].sum(), 1), TypeError, r"must return one scalar, got \(.*\[0\]"),
        (lambda p: None, TypeError, "`value_fn` must return one scalar, got None"),
        (lambda p: p, TypeError, "`value_fn` must return one scalar, got {"),
        (lambda p: jnp.bfloat16(1), TypeError, "at least float32, got bfloat16.*compute the loss in"),
        (lambda p: jnp.float16(1), TypeError, "`value_fn` must return at least float32, got float16"),
        (lambda p: 1j * p["w"].sum(), TypeError, "`value_fn` must return a real scalar, got complex"),
        (lambda p: "low", TypeError, "`value_fn` must return one scalar, got 'low'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("jit", [False, True])
def test_what_value_fn_returns(value_fn, error, message, jit):
    tx = egd(0.1, evolve_every=1)
    step = lambda s: tx.update(PARAMS, s, PARAMS, value_fn=value_fn)  # noqa: E731
    with pytest.raises(error, match=message):
        (jax.jit(step) if jit else step)(tx.init(PARAMS))


@pytest.mark.parametrize(
    "value_fn", [lambda p, leaked: jnp.sum(p["w"] * leaked), lambda p, leaked: leaked.sum()]
)
def test_a_value_fn_with_a_leaked_tracer_is_told_to_take_an_argument(value_fn):
    leaked = []
    jax.jit(leaked.append)(jnp.ones(3))
    tx = egd(0.1, evolve_every=1)

    def step(state):
        return tx.update(PARAMS, state, PARAMS, value_fn=lambda p: value_fn(p, leaked[0]))

    with pytest.raises(
        jax.errors.UnexpectedTracerError, match="pass it as an argument, `tx.update"
    ):
        step(tx.init(PARAMS))
    # Here JAX notices it when no code of ours runs any more, and says so itself.
    with pytest.raises(jax.errors.UnexpectedTracerError, match="functions explicitly return"):
        jax.jit(step)(tx.init(PARAMS))


def test_an_error_of_the_users_own_is_left_as_it_is():
    def value_fn(params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        update(egd(0.1, evolve_every=1), value_fn=value_fn)
    assert not any("value_fn" in note for note in getattr(caught.value, "__notes__", []))


def test_integer_fitness_is_fine():
    _, state = update(egd(0.1, evolve_every=1), value_fn=lambda p: jnp.sum(p["w"] > 0))
    assert int(state.info.parent_fitness) == 6


def test_evolve_is_decided_at_trace_time():
    tx = egd(0.1)
    step = lambda flag: update(tx, value_fn=lambda p: p["w"].sum(), evolve=flag)  # noqa: E731
    with pytest.raises(TypeError, match="`evolve` must be None, True or False.*static"):
        jax.jit(step)(True)
    with pytest.raises(TypeError, match="`evolve` must be None, True or False.*got 1"):
        step(1)


@pytest.mark.parametrize(
    ("mutable", "error", "message"),
    [
        ({"w": True}, ValueError, "`mutable` must be a prefix of the parameters' tree, got"),
        ([True, False], ValueError, "`mutable` must be a prefix"),
        ({"w": True, "b": {"c": True}}, ValueError, "`mutable` must be a prefix"),
        ({"w": 1, "b": 0}, TypeError, "`mutable` must hold Python bools, got"),
        (lambda p: {"w": True}, ValueError, "`mutable` must be a prefix"),
        (lambda p: jax.tree.map(jnp.any, p), TypeError, "`mutable` must hold Python bools"),
        (False, ValueError, "`mutable` leaves no floating-point parameter to mutate, got False"),
    ],
)
def test_mutable_is_checked_as_early_as_init(mutable, error, message):
    with pytest.raises(error, match=message):
        egd(0.1, mutable=mutable).init(PARAMS)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (lambda f: f[:1], ValueError, r"`recombine` must return one weight.*\(2,\), got shape \(1,\)"),
        (lambda f: f.sum(), ValueError, r"`recombine` must return one weight for each elite"),
        (lambda f: f * 1j, TypeError, "`recombine` must return real weights, got complex64"),
    ],
)  # fmt: skip
def test_what_a_recombination_rule_returns(rule, error, message):
    with pytest.raises(error, match=message):
        update(egd(0.1, evolve_every=1, recombine=rule), value_fn=lambda p: p["w"].sum())


@pytest.mark.parametrize("step", [0, -3])
def test_steps_count_from_one(step):
    with pytest.raises(ValueError, match="`step` counts from 1, got .*pass `step \\+ 1`"):
        is_due(step, 10)


def test_injected_hyperparameters_pass_as_arrays():
    static_args = {*STATIC_ARGS, "nesterov"} - {"evolve_every", "recombine", "mutable"}
    tx = optax.inject_hyperparams(egd, static_args=static_args)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 10),
        momentum=0.9,
        weight_decay=1e-3,
        evolve_every=2,
        sigma=0.05,
        temperature=0.5,
        recombine="softmax",
        key=3,
    )
    plain = egd(0.1, momentum=0.9, weight_decay=1e-3, evolve_every=2, sigma=0.05, key=3)
    loss = lambda p: jnp.sum((p["w"] - 2) ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(4):
        params, state = step(params, state)
    assert int(state.inner_state.cycle) == 2
    assert float(state.hyperparams["sigma"]) == pytest.approx(0.05)
    assert jnp.array_equal(state.inner_state.key_data, plain.init(PARAMS).key_data)
    assert loss(params) < loss(PARAMS)
