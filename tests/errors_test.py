"""Bad input raises an error that names the argument, the value and the fix."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, egd, evolve, is_due, noise, recombine
from egd_optax.wrappers import STATIC_ARGS

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
MESH = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True)
class Supports(recombine.Recombine):
    """A rule that says so of its support."""

    count: object

    def support(self, population_size):
        return self.count

    def weights(self, fitness, support):
        return jnp.ones(fitness.size)


@dataclasses.dataclass(frozen=True)
class Weighs(recombine.Recombine):
    """A rule of the four best."""

    fn: object

    def support(self, population_size):
        return 4

    def weights(self, fitness, support):
        return self.fn(fitness)


@dataclasses.dataclass(frozen=True)
class Forms(noise.Noise):
    """Noise that `fn` makes of normal numbers."""

    fn: object

    def form(self, parts, leaf):
        return self.fn(parts[0])


@dataclasses.dataclass(frozen=True)
class Draws(noise.Noise):
    """Noise that `fn` makes of normal numbers that it draws itself."""

    fn: object

    def draw(self, key, leaf):
        return (self.fn(jax.random.normal(key, leaf.shape)),)


def written(value):
    """Arguments as they stand in the name of a test."""
    if not isinstance(value, dict):
        return None
    return ", ".join(
        f"{name}={re.sub(' at 0x[0-9a-f]+', '', repr(setting))}" for name, setting in value.items()
    )


class CallableNoise(noise.Noise):
    def __call__(self, step):
        return step


class CallableRule(recombine.Recombine):
    def __call__(self, step):
        return step


class CallableExecution(Execution):
    def __call__(self, step):
        return step


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"evolve_every": 0}, ValueError, "`evolve_every` must be at least 1, got 0"),
        ({"evolve_every": 2.0}, TypeError, "`evolve_every` must be a Python int, got 2.0"),
        ({"evolve_every": True}, TypeError, "`evolve_every` must be a Python int, got True"),
        ({"population_size": 0}, ValueError, "`population_size` must be at least 2, got 0"),
        ({"population_size": 1}, ValueError, "`population_size` must be at least 2, got 1: the unmutated parent is one of them"),
        ({"population_size": 8.5}, TypeError, "`population_size` must be a Python int, got 8.5"),
        ({"population_size": jnp.int32(8)}, TypeError, r"`population_size` must be a Python int, got Array\(8.*pass `static_args=egd_optax.wrappers.STATIC_ARGS`"),
        ({"execution": Execution(candidate_batch_size=9)}, ValueError, r"`candidate_batch_size` must be at most `population_size` \(8\), got 9"),
        ({"antithetic": 1}, TypeError, "`antithetic` must be True or False, got 1"),
        ({"antithetic": True, "population_size": 9}, ValueError, "`population_size` must be even .* got 9"),
        ({"antithetic": True, "execution": Execution(candidate_batch_size=3)}, ValueError, "`candidate_batch_size` must be 1 or even .* got 3"),
        ({"generations": 0}, ValueError, "`generations` must be at least 1, got 0"),
        ({"generations": jnp.int32(2)}, TypeError, r"`generations` must be a Python int, got Array\(2.*pass `static_args=egd_optax.wrappers.STATIC_ARGS`"),
        ({"mutable": jnp.bool_(True)}, TypeError, r"`mutable` must be a Python function or pytree of bools, got .*True.*pass `static_args=egd_optax.wrappers.STATIC_ARGS`"),
        ({"es_optimizer": 0.5}, TypeError, "`es_optimizer` must be an optax.GradientTransformation, got 0.5: pass an optax optimizer"),
        ({"es_optimizer": None}, TypeError, "`es_optimizer` must be an optax.GradientTransformation, got None"),
        ({"es_optimizer": optax.adam}, TypeError, "`es_optimizer` must be an optax.GradientTransformation, got <function adam.*call it first"),
        ({"noise": "low_rank"}, TypeError, r"`noise` must be an operator, got 'low_rank': write `noise.gaussian\(\)`"),
        ({"noise": None}, TypeError, r"`noise` must be an operator, got None: write `noise.gaussian\(\)`"),
        ({"noise": noise.Noise}, TypeError, r"`noise` must be an operator, got <class .*Noise'>: write `noise.gaussian\(\)`"),
        ({"noise": noise.low_rank}, TypeError, r"`noise` must be an operator, got <function low_rank.*: write `noise.gaussian\(\)`"),
        ({"noise": recombine.mean()}, TypeError, r"`noise` must be an operator, got recombine.mean\(.*: write `noise.gaussian\(\)`"),
        ({"noise": CallableNoise()}, TypeError, "`noise` must not be callable, got .*CallableNoise.*Give it no `__call__`"),
        ({"noise": Draws([])}, TypeError, r"`noise` must be hashable, got Draws.*`@dataclasses.dataclass\(frozen=True\)`"),
        ({"sigma": -0.1}, ValueError, "`sigma` must be finite and at least 0, got -0.1"),
        ({"sigma": float("inf")}, ValueError, "`sigma` must be finite and at least 0, got inf"),
        ({"sigma": None}, TypeError, "`sigma` must be a real number, got None"),
        ({"recombine": "mean"}, TypeError, r"`recombine` must be an operator, got 'mean': write `recombine.mean\(\)`"),
        ({"recombine": jax.nn.softmax}, TypeError, r"`recombine` must be an operator, got .*softmax.*: write `recombine.mean\(\)`"),
        ({"recombine": recombine.Recombine}, TypeError, r"`recombine` must be an operator, got <class .*Recombine'>: write `recombine.mean\(\)`"),
        ({"recombine": recombine.softmax}, TypeError, r"`recombine` must be an operator, got <function softmax.*: write `recombine.mean\(\)`"),
        ({"recombine": noise.gaussian()}, TypeError, r"`recombine` must be an operator, got noise.gaussian\(.*: write `recombine.mean\(\)`"),
        ({"recombine": CallableRule()}, TypeError, "`recombine` must not be callable, got .*CallableRule.*Give it no `__call__`"),
        ({"recombine": Supports(jnp.int32(2))}, TypeError, r"`recombine.support` must return a Python int or None, got Array\(2.* from Supports.*may not be traced"),
        ({"recombine": Supports(2.0)}, TypeError, "`recombine.support` must return a Python int or None, got 2.0 from Supports"),
        ({"recombine": Supports(True)}, TypeError, "`recombine.support` must return a Python int or None, got True from Supports"),
        ({"recombine": Supports(0)}, ValueError, r"`recombine.support` must be from 1 to `population_size` \(8\), got 0 from Supports.*return None where all"),
        ({"recombine": Supports(9)}, ValueError, r"`recombine.support` must be from 1 to `population_size` \(8\), got 9 from Supports.*return None where all"),
        ({"recombine": recombine.Recombine()}, NotImplementedError, "Recombine must have a method `support`"),
        ({"accept": "best"}, TypeError, r"`accept` must be an operator, got 'best': write `accept.best\(\)`"),
        ({"accept": "always"}, TypeError, r"`accept` must be an operator, got 'always': write `accept.always\(\)`"),
        ({"accept": "improved"}, TypeError, r"`accept` must be an operator, got 'improved': write `accept.improved\(\)`"),
        ({"accept": "never"}, TypeError, r"`accept` must be an operator, got 'never': write `accept.best\(\)`, or subclass `accept.Accept`"),
        ({"accept": None}, TypeError, "`accept` must be an operator, got None"),
        ({"accept": accept.best}, TypeError, r"`accept` must be an operator, got <function best.*: write `accept.best\(\)`"),
        ({"accept": accept.Accept}, TypeError, r"`accept` must be an operator, got <class .*Accept'>: write `accept.best\(\)`"),
        ({"accept": type("Rule", (accept.Accept,), {"compares": 1})()}, TypeError, "`compares` must be True or False, got 1"),
        ({"accept": type("Rule", (accept.Accept,), {"takes_best": "no"})()}, TypeError, "`takes_best` must be True or False, got 'no'"),
        ({"accept": type("Rule", (accept.Accept,), {"__call__": len})()}, TypeError, "`accept` must not be callable, got .*Rule.*Give it no `__call__`"),
        ({"reset_base": None}, TypeError, "`reset_base` must be True or False, got None"),
        ({"execution": "replay"}, TypeError, r"`execution` must be an operator, got 'replay': write `Execution\(memory=\"replay\"\)`"),
        ({"execution": None}, TypeError, "`execution` must be an operator, got None: write `Execution"),
        ({"execution": Execution}, TypeError, "`execution` must be an operator, got <class .*Execution'>: write `Execution"),
        ({"execution": CallableExecution()}, TypeError, "`execution` must not be callable, got CallableExecution.*Give it no `__call__`"),
        ({"key": 0.5}, TypeError, "`key` must be an int or a jax PRNG key, got 0.5"),
        ({"key": "seed"}, TypeError, "`key` must be an int or a jax PRNG key, got 'seed'"),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "`key` must be a single threefry key"),
        ({"key": jax.random.split(jax.random.key(0))}, ValueError, "`key` must be a single"),
        ({"key": jnp.zeros(4, jnp.uint32)}, ValueError, r"`key` must be an int.*uint32 \[4\]"),
        ({"key": jnp.float32(1)}, ValueError, "`key` must be an int.*float32"),
        ({"key": 2**32}, ValueError, r"`key` must fit into 32 bits, from 0 to .*, got 4294967296: .*Pass another int"),
        ({"key": -1}, ValueError, "`key` must fit into 32 bits, from 0 to .*, got -1: .*Pass another int"),
        ({"key": np.array(-(2**31))}, ValueError, r"`key` must fit into 32 bits, .*got .*-2147483648.*: .*Pass another int"),
        ({"key": np.int64(2**40)}, ValueError, r"`key` must fit into 32 bits, .*got .*1099511627776.*: .*Pass another int"),
        ({"key": np.array(2**40)}, ValueError, r"`key` must fit into 32 bits, .*got .*1099511627776.*: .*Pass another int"),
    ],
    ids=written,
)  # fmt: skip
def test_constructor_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        evolve(optax.sgd(0.1), **kwargs)
    with pytest.raises(error, match=message):
        egd(0.1, **kwargs)


@pytest.mark.parametrize(
    ("make", "kwargs", "error", "message"),
    [
        (recombine.mean, {"elite_fraction": 0}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 0: it is the share"),
        (recombine.mean, {"elite_fraction": 1.5}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 1.5: it is the share"),
        (recombine.mean, {"elite_fraction": "half"}, TypeError, "`elite_fraction` must be a real number, got 'half'"),
        (recombine.mean, {"elite_fraction": True}, TypeError, "`elite_fraction` must be a real number, got True"),
        (recombine.mean, {"elite_fraction": jnp.float32(0.5)}, TypeError, r"`elite_fraction` must be a Python float, got Array\(0.5.*settings are static: make another operator"),
        (recombine.mean, {"elite_fraction": np.array([0.5, 0.2])}, TypeError, r"`elite_fraction` must be a real number, got array\(\[0.5, 0.2"),
        (recombine.mean, {"elite_fraction": float("nan")}, ValueError, r"`elite_fraction` must be in \(0, 1\], got nan: it is the share"),
        (recombine.softmax, {"elite_fraction": 0}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 0: it is the share"),
        (recombine.softmax, {"elite_fraction": jnp.float32(0.5)}, TypeError, "`elite_fraction` must be a Python float.*make another operator"),
        (recombine.softmax, {"temperature": 0.0}, ValueError, "`temperature` must be finite and above 0, got 0.0"),
        (recombine.softmax, {"temperature": float("inf")}, ValueError, "`temperature` must be finite and above 0, got inf"),
        (recombine.softmax, {"temperature": None}, TypeError, "`temperature` must be a real number, got None"),
        (recombine.softmax, {"temperature": jnp.float32(0.5)}, TypeError, r"`temperature` must be a Python float, got Array\(0.5.*settings are static: make another operator"),
        (recombine.elite_weights, {"fn": "mean"}, TypeError, "`fn` must be a function from the fitness of the elites to their weights, got 'mean'"),
        (recombine.elite_weights, {"fn": jax.nn.softmax, "elite_fraction": 2}, ValueError, r"`elite_fraction` must be in \(0, 1\], got 2: it is the share"),
        (recombine.member_weights, {"fn": 0.5}, TypeError, "`fn` must be a function from the fitness of all members to their weights, got 0.5"),
        (noise.gaussian, {"relative": 1}, TypeError, "`relative` must be True or False, got 1"),
        (noise.gaussian, {"relative": jnp.bool_(True)}, TypeError, r"`relative` must be True or False, got .*True"),
        (noise.gaussian, {"min_scale": -1.0}, ValueError, "`min_scale` must be finite and at least 0, got -1.0"),
        (noise.gaussian, {"min_scale": float("inf")}, ValueError, "`min_scale` must be finite and at least 0, got inf"),
        (noise.gaussian, {"min_scale": None}, TypeError, "`min_scale` must be a real number, got None"),
        (noise.gaussian, {"min_scale": jnp.float32(0.5)}, TypeError, r"`min_scale` must be a Python float, got Array\(0.5.*settings are static: make another operator"),
        (noise.low_rank, {"relative": None}, TypeError, "`relative` must be True or False, got None"),
        (noise.low_rank, {"min_scale": -1.0}, ValueError, "`min_scale` must be finite and at least 0, got -1.0"),
        (noise.low_rank, {"rank": 0}, ValueError, "`rank` must be at least 1, got 0"),
        (noise.low_rank, {"rank": 1.5}, TypeError, "`rank` must be a Python int, got 1.5"),
        (noise.low_rank, {"rank": True}, TypeError, "`rank` must be a Python int, got True"),
        (noise.low_rank, {"rank": jnp.int32(2)}, TypeError, r"`rank` must be a Python int, got Array\(2.*settings are static: make another operator"),
        (Execution, {"memory": "disk"}, ValueError, "`memory` must be \"host\" or \"device\" or \"replay\", got 'disk'"),
        (Execution, {"memory": None}, ValueError, "`memory` must be .* got None"),
        (Execution, {"evaluate": "fast"}, ValueError, "`evaluate` must be \"formed\" or \"factored\" or \"auto\", got 'fast'"),
        (noise.low_rank, {"batch_axis": "layers"}, TypeError, "`batch_axis` must be an axis, a sequence of axes, or a function .* got 'layers'"),
        (Execution, {"candidate_batch_size": 0}, ValueError, "`candidate_batch_size` must be at least 1, got 0"),
        (Execution, {"candidate_batch_size": 2.0}, TypeError, "`candidate_batch_size` must be a Python int, got 2.0"),
        (Execution, {"candidate_batch_size": jnp.int32(2)}, TypeError, r"`candidate_batch_size` must be a Python int, got Array\(2.*settings are static: make another operator"),
        (Execution, {"axis_name": 3}, TypeError, "`axis_name` must be the name of a mapped axis or a tuple of names, got 3"),
        (Execution, {"axis_name": ("data", 3)}, TypeError, r"`axis_name` must be the name of a mapped axis or a tuple of names, got \('data', 3\)"),
        (Execution, {"population_axis": ("pop", "more")}, TypeError, r"`population_axis` must be the name of one axis, got \('pop', 'more'\)"),
        (Execution, {"population_axis": "pop", "axis_name": ("data", "pop")}, ValueError, "`population_axis` must not be one of `axis_name`, got 'pop' for both: devices along"),
        (Execution, {"mesh": MESH}, ValueError, "`mesh` is that of `population_axis`, got Mesh.*without one: name an axis"),
        (Execution, {"mesh": 8, "population_axis": "pop"}, TypeError, "`mesh` must be a jax.sharding.Mesh, got 8"),
    ],
    ids=written,
)  # fmt: skip
def test_settings_of_operators_are_checked_when_these_are_made(make, kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    "key", [2**32 - 1, 0, np.int64(2**32 - 1), np.array(2**31), np.uint32(2**32 - 1)]
)
def test_keys_of_32_bits_are_taken(key):
    data = egd(0.1, key=key).init(PARAMS).key_data
    np.testing.assert_array_equal(data, jax.random.key_data(jax.random.key(int(key))))


@pytest.mark.parametrize("name", STATIC_ARGS)
def test_what_shapes_the_program_may_not_be_traced(name):
    make = jax.jit(lambda value: egd(0.1, **{name: value}).init(PARAMS))
    with pytest.raises(
        TypeError, match=f"`{name}` must be .*Tracer.*=egd_optax.wrappers.STATIC_ARGS`"
    ):
        make(2)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (recombine.mean, "elite_fraction"),
        (recombine.softmax, "temperature"),
        (noise.gaussian, "min_scale"),
        (noise.low_rank, "rank"),
        (Execution, "candidate_batch_size"),
        (Supports, "recombine.support"),
    ],
)
def test_settings_of_operators_may_not_be_traced(make, name):
    argument = "count" if make is Supports else name

    def traced(value):
        operator = make(**{argument: value})
        evolve(optax.sgd(0.1), recombine=operator)  # only `Supports` gets here

    with pytest.raises(TypeError, match=f"`{name}` must .*Tracer"):
        jax.jit(traced)(2)


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
        (
            {"execution": Execution(axis_name="data")},
            "`axis_name` must name a mapped axis, got 'data' outside of any",
        ),
        (
            {"execution": Execution(population_axis="pop")},
            "`population_axis` needs a mesh, got 'pop' without one: pass",
        ),
        (
            {"execution": Execution(population_axis="pup", mesh=MESH)},
            r"an axis of the mesh, got 'pup'.*has \('pop',\)",
        ),
        (
            {"execution": Execution(population_axis="pop", mesh=MESH), "population_size": 7},
            "`population_size` must be at least 8 on 8 devices, got 7: raise it, or make the axis 'pop'",
        ),
        (
            {
                "execution": Execution(population_axis="pop", mesh=MESH),
                "population_size": 14,
                "antithetic": True,
            },
            "must be at least 16 on 8 devices, two on each, for a pair shares its noise, got 14",
        ),
    ],
    ids=["not mapped", "no mesh", "not in the mesh", "few members", "few pairs"],
)
def test_axes_of_devices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        update(egd(0.1, evolve_every=1, **kwargs), value_fn=lambda p: p["w"].sum())


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        (Execution(axis_name="date"), "`axis_name` must name a mapped axis, got 'date'"),
        (Execution(population_axis="pop"), r"an axis of the mesh, got 'pop'.*has \('data',\)"),
    ],
    ids=repr,
)
def test_an_unknown_axis_inside_of_shard_map(execution, message):
    tx = egd(0.1, evolve_every=1, execution=execution)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @jax.shard_map(mesh=mesh, in_specs=(), out_specs=PartitionSpec())
    def step():
        return update(tx, value_fn=lambda p: p["w"].sum())[0]

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step)


@pytest.mark.parametrize("what", ["parameters", "samples"])
def test_one_axis_for_members_and_for_shards(what):
    mesh = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Explicit,))
    tx = egd(0.1, evolve_every=1, execution=Execution(population_axis="pop"))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("pop")))
        whole = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec()))
        params, batch = (sharded, whole) if what == "parameters" else (whole, sharded)
        with pytest.raises(ValueError, match=f"`population_axis` must not shard {what}, got 'pop'"):
            tx.update(params, tx.init(params), params, value_fn=jnp.sum, batch=batch)


def test_a_guard_needs_a_rule_that_compares():
    with pytest.raises(
        ValueError, match="`accept_value_fn` must be left out with accept=accept.always\\(\\)"
    ):
        update(egd(0.1, accept=accept.always()), value_fn=jnp.sum, accept_value_fn=jnp.sum)


def test_a_value_fn_dropped_on_the_way_is_missed():
    def drops(params):
        return optax.GradientTransformation(
            tx.init, lambda grads, state, params=None: tx.update(grads, state, params)
        )

    tx = egd(0.1)
    outer = optax.chain(drops(PARAMS), optax.scale(1.0))
    with pytest.raises(
        TypeError, match=r"a wrapper .* drops it, bind it: `egd_optax.bind_value_fn\("
    ):
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


@pytest.mark.filterwarnings("ignore:`value_fn` returns the same for all members")
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


# What shows `egd` the weights of `PARAMS` and hides the biases.
HIDES = {
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "partition": lambda tx: optax.partition(
        {"own": tx, "other": optax.sgd(0.1)}, {"w": "own", "b": "other"}
    ),
    "selective_transform": lambda tx: optax.transforms.selective_transform(
        tx, freeze_mask={"w": False, "b": True}
    ),
}


def needs_both(params):
    return params["w"].sum() + params["b"].sum()


def notes_of(error):
    return [note for note in getattr(error, "__notes__", []) if "with_frozen" in note]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("hide", HIDES.values(), ids=HIDES)
@pytest.mark.parametrize("name", ["value_fn", "accept_value_fn", "base_value_fn"])
def test_a_value_fn_that_fails_on_gaps_is_told_of_with_frozen(name, hide, jit):
    base = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(2))
    tx = hide(evolve(base if name == "base_value_fn" else optax.sgd(0.1), evolve_every=1))
    functions = {"value_fn": lambda p: p["w"].sum(), name: needs_both}

    def step(state):
        line_search = {"value": needs_both(PARAMS), "grad": {**PARAMS, "b": optax.MaskedNode()}}
        return tx.update(PARAMS, state, PARAMS, **functions, **line_search)

    with pytest.raises(
        AttributeError, match=r"MaskedNode.*`value_fn=egd_optax.with_frozen\(value_fn, params\)`"
    ) as caught:
        (jax.jit(step) if jit else step)(tx.init(PARAMS))
    assert len(notes_of(caught.value)) == 1


def test_an_error_without_gaps_is_not_told_of_with_frozen():
    def fails(params):
        return needs_both(params) + params["missing"]

    with pytest.raises(KeyError, match="missing") as caught:
        update(egd(0.1, evolve_every=1), value_fn=fails)
    assert not notes_of(caught.value)


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


# A rule of one's own with what it weighs, and how it is called in messages.
RULES = {
    "elite_weights": (recombine.elite_weights, 2, r"recombine.elite_weights\(fn=.*, elite_fraction=0.25\)"),
    "member_weights": (recombine.member_weights, 8, r"recombine.member_weights\(fn=.*\)"),
    "subclass": (Weighs, 8, r"Weighs\(fn=.*\)"),
}  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda f: f[:1], ValueError, r"`recombine` must return one weight for each of {count} members, shape \({count},\), got shape \(1,\) from {rule}"),
        (lambda f: f.sum(), ValueError, r"`recombine` must return one weight for each of {count} members, shape \({count},\), got shape \(\) from {rule}"),
        (lambda f: f[:, None], ValueError, r"`recombine` must return one weight for each of {count} members, .*got shape \({count}, 1\) from {rule}"),
        (lambda f: f * 1j, TypeError, "`recombine` must return real weights, got complex64 from {rule}"),
        (lambda f: f * jnp.nan, ValueError, r"`recombine` must return finite weights, got \[.*nan.* from {rule} for members of fitness \[8"),
        (lambda f: f / 0, ValueError, r"`recombine` must return finite weights, got \[.*inf.* from {rule} for members of fitness \[8"),
    ],
    ids=["one too few", "scalar", "matrix", "complex", "NaN", "infinite"],
)  # fmt: skip
def test_what_a_recombination_rule_returns(fn, error, message, rule, jit):
    make, count, name = RULES[rule]
    tx = egd(0.1, evolve_every=1, recombine=make(fn))
    step = lambda s: tx.update(PARAMS, s, PARAMS, value_fn=lambda p: p["w"].sum())  # noqa: E731
    message = message.replace("{count}", str(count)).replace("{rule}", name)
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        (jax.jit(step) if jit else step)(tx.init(PARAMS))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", [Forms, Draws])
@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x[:1], ValueError, r"`noise` must be of the shape of its leaf, \(3,\), got \(1,\) from {kind}\("),
        (lambda x: x.sum(), ValueError, r"`noise` must be of the shape of its leaf, \(3,\), got \(\) from {kind}\("),
        (lambda x: x.astype(jnp.int32), TypeError, r"`noise` must be real floating-point numbers for a leaf of float32, got int32 from {kind}\("),
        (lambda x: x > 0, TypeError, r"`noise` must be real floating-point numbers for a leaf of float32, got bool from {kind}\("),
        (lambda x: x * 1j, TypeError, r"`noise` must be real floating-point numbers for a leaf of float32, got complex64 from {kind}\("),
        (lambda x: x * jnp.nan, ValueError, r"`noise` must be finite, got NaN or infinite numbers from {kind}\(.* for a leaf of shape \(3,\)"),
        (lambda x: x / 0, ValueError, r"`noise` must be finite, got NaN or infinite numbers from {kind}\(.* for a leaf of shape \(3,\)"),
    ],
    ids=["one number", "scalar", "ints", "bools", "complex", "NaN", "infinite"],
)  # fmt: skip
def test_what_noise_returns(fn, error, message, kind, jit):
    tx = egd(0.1, evolve_every=1, noise=kind(fn))
    message = message.replace("{kind}", kind.__name__)
    step = lambda s: tx.update(PARAMS, s, PARAMS, value_fn=lambda p: p["w"].sum())  # noqa: E731
    with pytest.raises(error, match=message):
        (jax.jit(step) if jit else step)(tx.init(PARAMS))


@pytest.mark.parametrize("kind", [Forms, Draws])
def test_noise_that_is_only_infinite_under_way_moves_nothing(kind):
    """Of the smallest leaf, a scalar, it is finite, which is all that is tried out."""
    tx = egd(0.1, evolve_every=1, noise=kind(_nan_unless_scalar), accept=accept.always())
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros([])}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(grads, tx.init(params), params, value_fn=lambda p: p["b"])
    assert bool(state.info.accepted)
    assert not updates["w"].any()


def _nan_unless_scalar(values):
    return values if values.ndim == 0 else values * jnp.nan


def test_noise_in_shards_is_not_tried_out():
    """Where an axis is manual nothing can be computed while a step is traced."""
    tx = egd(0.1, evolve_every=1, noise=Forms(lambda x: x), execution=Execution(axis_name="data"))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @jax.shard_map(mesh=mesh, in_specs=(), out_specs=PartitionSpec())
    def step():
        return update(tx, value_fn=lambda p: p["w"].sum())[0]

    jax.eval_shape(step)


def test_noise_without_methods_is_gaussian_and_rules_need_weights():
    class Silent(noise.Noise):
        pass

    class Half(recombine.Recombine):
        def support(self, population_size):
            return 2

    fitness = lambda p: p["w"].sum()  # noqa: E731
    plain, silent = (
        update(egd(0.1, evolve_every=1, noise=kind), value_fn=fitness)[0]
        for kind in (noise.gaussian(), Silent())
    )
    assert jnp.array_equal(plain["w"], silent["w"])
    with pytest.raises(NotImplementedError, match="Half must have a method `weights`"):
        update(egd(0.1, evolve_every=1, recombine=Half()), value_fn=fitness)


@pytest.mark.parametrize("step", [0, -3])
def test_steps_count_from_one(step):
    with pytest.raises(ValueError, match="`step` counts from 1, got .*pass `step \\+ 1`"):
        is_due(step, 10)


def test_injected_hyperparameters_pass_as_arrays():
    static_args = {*STATIC_ARGS, "nesterov"} - {"mutable"}
    tx = optax.inject_hyperparams(egd, static_args=static_args)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 10),
        momentum=0.9,
        weight_decay=1e-3,
        evolve_every=2,
        sigma=0.05,
        es_optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.5),
        recombine=recombine.softmax(temperature=0.5),
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
    of_step = state.inner_state.strategy_state.es_optimizer.hyperparams
    assert float(of_step["learning_rate"]) == pytest.approx(0.5)
    assert jnp.array_equal(state.inner_state.key_data, plain.init(PARAMS).key_data)
    assert loss(params) < loss(PARAMS)
