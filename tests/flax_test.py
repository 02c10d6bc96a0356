"""EGD in Flax training loops, linen and NNX."""

import chex
from flax import linen as nn
from flax import nnx
import flax.errors
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rules import Finite

from egd_optax import Execution, accept, egd, evolve, with_frozen
from egd_optax.flax import TrainState, nnx_value_fn

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jnp.sum(X, axis=1, keepdims=True)


def linen_state(tx, state_type=TrainState):
    model = nn.Dense(1)
    params = model.init(jax.random.key(1), X)["params"]
    return state_type.create(apply_fn=model.apply, params=params, tx=tx)


def linen_loss(params):
    return jnp.mean((nn.Dense(1).apply({"params": params}, X) - Y) ** 2)


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2)])
def test_train_state_is_that_of_linen_for_any_optax_optimizer(tx):
    ours, theirs = linen_state(tx), linen_state(tx, train_state.TrainState)
    for _ in range(3):
        grads = jax.grad(linen_loss)(theirs.params)
        ours = ours.apply_gradients(grads=grads, value_fn=linen_loss)
        theirs = theirs.apply_gradients(grads=grads)
        chex.assert_trees_all_equal(ours.params, theirs.params)
        chex.assert_trees_all_equal(ours.opt_state, theirs.opt_state)
        assert ours.step == theirs.step
        assert ours.tx is tx


def test_train_state_evolves_under_jit_and_replaces_fields():
    class WithCount(TrainState):
        batches: int = 0

    state = linen_state(egd(0.1, evolve_every=2), WithCount)

    @jax.jit
    def step(state, x, y):
        def loss(params, x, y):
            return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

        grads = jax.grad(loss)(state.params, x, y)
        return state.apply_gradients(
            grads=grads, value_fn=loss, x=x, y=y, batches=state.batches + 1
        )

    state = jax.device_put(state, jax.devices()[0])
    for _ in range(4):
        state = step(state, X, Y)
    assert int(state.opt_state.cycle) == 2
    assert int(state.batches) == int(state.step) == 4
    assert step._cache_size() == 1


@jax.custom_vjp
def limited(kernel, limit):
    return jnp.clip(kernel, -limit, limit)


# The "gradient" of the limit is the one to use from the next step on.
limited.defvjp(
    lambda kernel, limit: (limited(kernel, limit), kernel),
    lambda kernel, slope: (slope, jnp.max(jnp.abs(kernel)) * 0.9),
)


class Limited(nn.Module):
    """A layer whose output changes with the collection, by far more than that of FP8 does."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], 1))
        limit = self.variable(OVERWRITE_WITH_GRADIENT, "limit", lambda: jnp.float32(0.1))
        return x @ limited(kernel, limit.value)


class Fp8(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, dot_general_cls=nn.Fp8DirectDotGeneralOp)(x)


OVERWRITING = {"limited": Limited(), "fp8": Fp8()}


def overwriting_loss(model):
    def loss(variables):
        assert set(variables) == {"params", OVERWRITE_WITH_GRADIENT}
        return jnp.mean((model.apply(variables, X) - Y) ** 2)

    return loss


def overwriting_state(model, tx, state_type=TrainState):
    variables = model.init(jax.random.key(1), X)
    return state_type.create(apply_fn=model.apply, params=variables, tx=tx)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("model", OVERWRITING.values(), ids=OVERWRITING)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_collection_overwritten_by_its_gradient_is_seen_as_the_step_leaves_it(model, jit):
    loss = overwriting_loss(model)
    tx = egd(0.01, evolve_every=2, sigma=0.2, accept=Finite())

    def step(state):
        grads = jax.grad(loss)(state.params)
        return state.apply_gradients(grads=grads, value_fn=loss), grads

    state = overwriting_state(model, tx)
    for _ in range(6):
        plain = overwriting_state(model, optax.sgd(0.01), train_state.TrainState)
        plain = plain.replace(params=state.params)
        state, grads = (jax.jit(step) if jit else step)(state)
        plain = plain.apply_gradients(grads=grads)
        chex.assert_trees_all_equal(
            state.params[OVERWRITE_WITH_GRADIENT], plain.params[OVERWRITE_WITH_GRADIENT]
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(state.params, plain.params)
        info = state.opt_state.info
        if int(state.step) % 2 == 0:  # what was scored is what the state became
            np.testing.assert_allclose(info.parent_fitness, loss(plain.params), rtol=1e-4)
            np.testing.assert_allclose(info.child_fitness, loss(state.params), rtol=1e-4)
        else:
            chex.assert_trees_all_close(state.params, plain.params, rtol=1e-6)
    assert int(state.opt_state.cycle) == 3
    assert bool(info.accepted)


@pytest.mark.wide
def test_each_objective_sees_the_collection_that_it_is_of():
    def evaluates(updates, state, params, *, value_fn, scale):
        return updates, value_fn(params, scale=scale)

    model = OVERWRITING["limited"]
    loss = overwriting_loss(model)
    base = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), evaluates)
    before = overwriting_state(
        model, evolve(base, evolve_every=1, sigma=0.2, accept=accept.improved())
    )
    grads = jax.grad(loss)(before.params)
    grads["params"] = jax.tree.map(jnp.zeros_like, grads["params"])
    parent = {**before.params, OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
    assert abs(loss(parent) - loss(before.params)) > 0.1

    def scaled(variables, scale):
        return scale * loss(variables)

    def alike_with_the_old(variables):
        old = variables[OVERWRITE_WITH_GRADIENT]["limit"] == 0.1
        return jnp.where(old, 0.0, loss(variables))

    after = before.apply_gradients(
        grads=grads,
        value_fn=scaled,
        accept_value_fn=alike_with_the_old,
        base_value_fn=scaled,
        scale=2.0,
    )
    info = after.opt_state.info
    np.testing.assert_allclose(info.parent_fitness, 2 * loss(parent), rtol=1e-6)
    np.testing.assert_allclose(after.opt_state.base_state, 2 * loss(before.params), rtol=1e-6)
    assert bool(info.accepted)  # a guard that saw the old collection would find no difference
    assert loss(after.params) < loss(parent)


def test_an_objective_that_is_no_function_is_named_beside_a_collection_too():
    model = OVERWRITING["limited"]
    state = overwriting_state(model, egd(0.1, evolve_every=1))
    grads = jax.grad(overwriting_loss(model))(state.params)
    with pytest.raises(TypeError, match="`value_fn` must be a function of the parameters, got 3.0"):
        state.apply_gradients(grads=grads, value_fn=3.0)


def test_gaps_are_filled_beside_a_collection_that_is_overwritten():
    model = Fp8()
    loss = overwriting_loss(model)
    tx = optax.masked(
        egd(0.01, evolve_every=1), lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    state = overwriting_state(model, tx)
    grads = jax.grad(loss)(state.params)
    grads["params"]["Dense_0"]["bias"] *= 0
    state = state.apply_gradients(grads=grads, value_fn=with_frozen(loss, state.params))
    info = state.opt_state.inner_state.info
    reached = info.child_fitness if bool(info.accepted) else info.parent_fitness
    np.testing.assert_allclose(min(reached, info.best_fitness), loss(state.params), rtol=1e-4)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(8, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x):
        self.calls[...] += 1
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))


def nnx_loss(model):
    return jnp.mean((model(X) - Y) ** 2)


def values(model):
    """Everything that the model holds, keys as their raw data."""

    def value(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(value, nnx.to_pure_dict(nnx.state(model)))


@pytest.mark.wide
def test_nnx_value_fn_scores_a_copy_in_evaluation_mode():
    model = Net(nnx.Rngs(0))
    nnx_loss(model)  # moves the running statistics
    before = values(model)
    value_fn = nnx_value_fn(model, nnx_loss)
    params = nnx.state(model, nnx.Param)
    first, second = value_fn(params), value_fn(params)
    assert first == second  # no dropout
    chex.assert_trees_all_equal(values(model), before)
    model.eval()
    np.testing.assert_allclose(first, nnx_loss(model), rtol=1e-6)
    shifted = value_fn(jax.tree.map(lambda leaf: leaf + 1.0, params))
    assert shifted != first


def overwrites_the_model(model):
    def value_fn(params):
        nnx.update(model, params)
        return nnx_loss(model)

    return value_fn


def shares_its_statistics(model):
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    return lambda params: nnx_loss(nnx.merge(graphdef, params, rest))


@pytest.mark.wide
@pytest.mark.parametrize("make_value_fn", [overwrites_the_model, shares_its_statistics])
@pytest.mark.parametrize("jit", [False, True])
def test_a_value_fn_that_changes_its_model_is_told_of_nnx_value_fn(make_value_fn, jit):
    def step(model, optimizer):
        grads = nnx.grad(nnx_loss)(model)
        optimizer.update(model, grads, value_fn=make_value_fn(model))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, egd(0.05, evolve_every=1), wrt=nnx.Param)
    with pytest.raises(flax.errors.TraceContextError, match=r"nnx_value_fn\(model, loss\)"):
        (nnx.jit(step) if jit else step)(model, optimizer)


@pytest.mark.parametrize("jit", [False, True])
def test_a_value_fn_that_updates_a_metric_is_told_to_return_the_value(jit):
    def step(model, optimizer, metric):
        def value_fn(params):
            value = nnx_value_fn(model, nnx_loss)(params)
            metric.update(values=value)
            return value

        optimizer.update(model, nnx.grad(nnx_loss)(model), value_fn=value_fn)

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, egd(0.05, evolve_every=1), wrt=nnx.Param)
    with pytest.raises(
        flax.errors.TraceContextError, match="`nnx.metrics`, return the value and update the metric"
    ):
        (nnx.jit(step) if jit else step)(model, optimizer, nnx.metrics.Average())


HEAD = nnx.All(nnx.Param, nnx.PathContains("outer"))


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("of_optimizer", "of_value_fn", "message"),
    [
        (HEAD, nnx.Param, r"got <class .*Param'>, which selects 6 leaves .* passes 2"),
        (nnx.Param, HEAD, r"got All\(.*'outer'.*, which selects 2 leaves .* passes 6"),
    ],
    ids=["wider", "narrower"],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_filter_that_is_not_that_of_the_optimizer_is_named(
    of_optimizer, of_value_fn, message, jit
):
    def step(model, optimizer, wrt):
        grads = nnx.grad(nnx_loss, argnums=nnx.DiffState(0, of_optimizer))(model)
        optimizer.update(model, grads, value_fn=nnx_value_fn(model, nnx_loss, wrt=wrt))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, egd(0.05, evolve_every=1), wrt=of_optimizer)
    step = nnx.jit(step, static_argnums=2) if jit else step
    with pytest.raises(ValueError, match=f"`wrt` must be the filter .*{message}.*wrt=wrt"):
        step(model, optimizer, of_value_fn)
    step(model, optimizer, of_optimizer)
    assert int(optimizer.opt_state.cycle[...]) == 1


def of_leaves(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def of_layers(params):
    return nnx.State({"inner": False, "norm": True, "outer": True})


@pytest.mark.parametrize("mask", [of_leaves, of_layers])
def test_gaps_are_told_of_with_frozen_and_not_of_the_filter(mask):
    model = Net(nnx.Rngs(0))
    tx = optax.masked(egd(0.05, evolve_every=1), mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    value_fn, grads = nnx_value_fn(model, nnx_loss), nnx.grad(nnx_loss)(model)
    with pytest.raises(Exception, match=r"egd_optax.with_frozen\(value_fn, params\)") as caught:
        optimizer.update(model, grads, value_fn=value_fn)
    assert "wrt" not in str(caught.value)
    optimizer.update(model, grads, value_fn=with_frozen(value_fn, nnx.state(model, nnx.Param)))
    assert int(optimizer.opt_state.inner_state.cycle[...]) == 1


@pytest.mark.crossed(1)
@pytest.mark.parametrize("memory", ["host", "device", "replay"])
def test_nnx_optimizer_evolves_and_cycles_leave_no_trace_in_the_model(memory):
    model = Net(nnx.Rngs(0))
    tx = egd(0.05, evolve_every=2, execution=Execution(memory=memory))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(nnx_loss)(model)
        optimizer.update(model, grads, value_fn=nnx_value_fn(model, nnx_loss))

    plain = Net(nnx.Rngs(0))
    for _ in range(4):
        step(model, optimizer)
        nnx_loss(plain)
    assert int(optimizer.opt_state.cycle[...]) == 2
    assert int(model.calls[...]) == 4  # the gradient's calls only
    assert int(model.dropout.rngs.count[...]) == int(plain.dropout.rngs.count[...])
    assert bool(optimizer.opt_state.info.accepted[...])
