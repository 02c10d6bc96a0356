"""What optax demands of its contributed optimizers, over bases, memory modes and intervals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from egd_optax import CycleInfo, EvolveState, Execution, accept, egd, evolve, noise, recombine
from egd_optax.wrappers import STATIC_ARGS

MEMORY = ("host", "device", "replay")
BASES = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.0),
    "lion": optax.lion,
    "muon": contrib.muon,
    "schedule_free_sgd": contrib.schedule_free_sgd,
}
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3), "b": jnp.ones(3, jnp.bfloat16)}


def loss(params):
    return sum(jnp.sum((leaf.astype(jnp.float32) - 0.5) ** 2) for leaf in jax.tree.leaves(params))


def make_step(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            jax.grad(loss)(params), state, params, value_fn=loss, an_argument_nobody_expects=1
        )
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.crossed(2)
@pytest.mark.parametrize("evolve_every", [1, 3])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("base", BASES)
def test_a_run_is_stable(base, memory, evolve_every):
    execution = Execution(memory=memory)
    tx = evolve(BASES[base](0.05), evolve_every=evolve_every, execution=execution)
    start = jax.device_put((PARAMS, tx.init(PARAMS)), jax.devices()[0])
    step = make_step(tx)
    params, state = start
    for _ in range(3):
        params, state = step(params, state)
        assert jax.tree.map(jax.typeof, (params, state)) == jax.tree.map(jax.typeof, start)
    assert step._cache_size() == 1
    assert int(state.cycle) == 3 // evolve_every
    assert loss(params) < loss(PARAMS)


@pytest.mark.parametrize(
    "mutable", [None, {"w": True, "b": False}, lambda p: {"w": p["w"].ndim > 1, "b": False}]
)
@pytest.mark.parametrize("base", BASES)
def test_map_params_finds_the_parameters_in_the_state(base, mutable):
    tx = evolve(BASES[base](0.1), mutable=mutable)
    state = tx.init(PARAMS)
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    marked = optax.tree.map_params(tx, lambda leaf: None, state)
    base_marked = optax.tree.map_params(BASES[base](0.1), lambda leaf: None, state.base_state)
    chex.assert_trees_all_equal(marked.base_state, base_marked)
    chex.assert_trees_all_equal(marked.info, state.info)


@pytest.mark.parametrize("base", BASES)
def test_init_needs_only_shapes(base):
    tx = evolve(BASES[base](0.1))
    abstract = jax.eval_shape(lambda: PARAMS)
    concrete = tx.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, abstract), concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.jit(tx.init)(PARAMS), concrete)


@pytest.mark.wide
@pytest.mark.parametrize("base", BASES)
def test_the_state_is_stable_in_float64(base):
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(np.linspace(-1, 2, 12).reshape(4, 3)), "b": jnp.ones(3)}
        assert params["w"].dtype == jnp.float64
        tx = evolve(BASES[base](0.05), evolve_every=2)
        start = (params, tx.init(params))
        step, (params, state) = make_step(tx), start
        for _ in range(2):
            params, state = step(params, state)
        assert jax.tree.map(jax.typeof, (params, state)) == jax.tree.map(jax.typeof, start)
        assert state.info.child_fitness.dtype == jnp.float64


@pytest.mark.crossed(1)
@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("base", ["sgd", "schedule_free_sgd"])
def test_types_are_stable_on_a_mesh(base, memory, axis_type):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, {"w": jax.P("x"), "b": jax.P()})
        execution = Execution(memory=memory)
        tx = evolve(BASES[base](0.05), evolve_every=2, execution=execution, reset_base=True)
        start = (params, tx.init(params))
        step, (params, state) = make_step(tx), start
        for _ in range(4):
            params, state = step(params, state)
        assert jax.tree.map(jax.typeof, (params, state)) == jax.tree.map(jax.typeof, start)
        assert params["w"].sharding.is_equivalent_to(start[0]["w"].sharding, 2)
        assert int(state.cycle) == 2


@pytest.mark.wide
@pytest.mark.parametrize("factory", ["egd", "evolve"])
def test_static_args_let_inject_hyperparams_wrap(factory):
    options = {
        "evolve_every": 2,
        "population_size": 5,
        "generations": 2,
        "noise": noise.gaussian(min_scale=0.01),
        "recombine": recombine.elite_weights(jax.nn.softmax, elite_fraction=0.5),
        "es_optimizer": optax.sgd(0.5),
        "mutable": lambda params: {"w": True, "b": False},
        "sigma": 0.1,
        "key": 7,
        "accept": accept.always(),
    }
    injectable = {"evolve_every", "sigma", "key"}
    if factory == "egd":
        make, first = egd, {"learning_rate": 0.125, "weight_decay": 0.25}
        injectable |= first.keys()
    else:
        make, first = evolve, {"base": optax.sgd(0.125)}
    # In one dtype: optax multiplies bfloat16 gradients by an injected rate in float32.
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    plain = make(**first, **options)
    injected = optax.inject_hyperparams(make, static_args=STATIC_ARGS)(**first, **options)
    params, state = start, plain.init(start)
    injected_params, injected_state = start, injected.init(start)
    step, injected_step = make_step(plain), make_step(injected)
    for _ in range(4):
        params, state = step(params, state)
        injected_params, injected_state = injected_step(injected_params, injected_state)
    chex.assert_trees_all_close(injected_params, params, rtol=1e-5)
    chex.assert_trees_all_close(injected_state.inner_state, state, rtol=1e-4)
    assert int(state.cycle) == 2
    assert injected_state.hyperparams.keys() == injectable


@pytest.mark.parametrize("name", ["population_size", "generations"])
@pytest.mark.parametrize(
    ("make", "first"),
    [(egd, {"learning_rate": 0.1}), (evolve, {"base": optax.sgd(0.1)})],
    ids=["egd", "evolve"],
)
def test_a_number_that_shapes_the_program_must_be_a_static_argument(make, first, name):
    others = set(STATIC_ARGS) - {name}
    tx = optax.inject_hyperparams(make, static_args=others)(**first, evolve_every=1)
    with pytest.raises(
        TypeError, match=f"`{name}` must be .*static_args=egd_optax.wrappers.STATIC_ARGS"
    ):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("make", "first"),
    [(egd, {"learning_rate": 0.1}), (evolve, {"base": optax.sgd(0.1)})],
    ids=["egd", "evolve"],
)
def test_a_function_mutable_must_be_a_static_argument(make, first):
    """Else optax calls it with the step, as a schedule."""

    def init(static_args, mutable):
        inject = optax.inject_hyperparams(make, static_args=static_args)
        return inject(**first, mutable=mutable).init(PARAMS)

    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    others = set(STATIC_ARGS) - {"mutable"}
    with pytest.raises(ValueError, match="`mutable` leaves no floating-point parameter"):
        init(others, matrices)
    with pytest.raises(
        TypeError, match="`mutable` must be .*static_args=egd_optax.wrappers.STATIC_ARGS"
    ):
        init(others, lambda step: step > 0)  # what a schedule would be
    assert int(init(STATIC_ARGS, matrices).inner_state.count) == 0


@pytest.mark.wide
def test_an_injected_sigma_schedule_runs_by_the_step():
    tx = optax.inject_hyperparams(egd, static_args=STATIC_ARGS)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 10),
        sigma=optax.linear_schedule(0.4, 0.0, 4),
        evolve_every=2,
    )
    params, state = PARAMS, tx.init(PARAMS)
    step, sigmas = make_step(tx), []
    for _ in range(4):
        params, state = step(params, state)
        sigmas.append(float(state.inner_state.info.sigma))
    np.testing.assert_allclose(sigmas, [0, 0.3, 0.3, 0.1], atol=1e-6)  # steps 1 and 3, from 0


PROBLEMS = {
    "parabola": (jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0]), None),
    "matrix": (jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]]), None),
    "mixed": (
        (jnp.zeros(3), jnp.zeros((2, 2))),
        (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])),
        None,
    ),
    "rosenbrock": (
        jnp.zeros(2),
        jnp.ones(2),
        lambda p: (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2,
    ),
}
# Rosenbrock's valley wants small steps of SGD, and Muon leaves vectors to Adam.
RATES = {
    "sgd": 1e-3,
    "adam": 1e-2,
    "adamw": 1e-2,
    "lion": 1e-3,
    "muon": 1e-2,
    "schedule_free_sgd": 2e-3,
}


@pytest.mark.crossed(1)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("base", BASES)
def test_converges_on_the_test_problems_of_optax(base, problem):
    start, target, objective = PROBLEMS[problem]

    def distance(params):
        return sum(
            jnp.sum((p - t) ** 2)
            for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
        )

    objective = objective or distance
    execution = Execution(memory="replay")
    tx = evolve(BASES[base](RATES[base]), evolve_every=500, execution=execution)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(objective)(params), state, params, value_fn=objective)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=30_000)
    if base == "schedule_free_sgd":
        params = contrib.schedule_free_eval_params(state.base_state, params)
    chex.assert_trees_all_close(params, target, rtol=3e-2, atol=3e-2)
    assert int(state.cycle) == 60


@pytest.mark.parametrize("name", [*EvolveState._fields, *CycleInfo._fields])
def test_a_name_in_the_state_is_that_of_one_value(name):
    tx = optax.chain(optax.clip(1.0), evolve(optax.sgd(0.1)))
    state = tx.init(PARAMS)
    own = state[1] if name in EvolveState._fields else state[1].info
    chex.assert_trees_all_equal(optax.tree.get(state, name), getattr(own, name))
