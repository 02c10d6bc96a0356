"""The first mistakes of a newcomer: each error says what to write."""

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import egd, evolve, presets
from egd_optax.flax import nnx_value_fn

X, Y = jnp.ones((4, 3)), jnp.ones((4, 1))


def model_of():
    return nnx.Linear(3, 1, rngs=nnx.Rngs(0))


def loss(model, x=X):
    return jnp.mean((model(x) - Y) ** 2)


def loss_of_batch(model, x):
    return loss(model, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: evolve(optax.adam(1e-3), presets.metric()),
        lambda: egd(0.1, presets.metric()),
        lambda: egd(0.1, None, {"evolve_every": 3}),
    ],
)
def test_settings_without_stars_are_told_to_have_them(make):
    with pytest.raises(TypeError, match=r"settings must be passed by name.*write `\*\*`"):
        make()


@pytest.mark.parametrize("mutable", [model_of(), nnx.Param, nnx.state(model_of()), bool])
@pytest.mark.parametrize("make", [lambda **kwargs: evolve(optax.adam(1e-3), **kwargs), egd])
def test_a_model_or_a_class_is_not_mutable(make, mutable):
    args = () if make is not egd else (0.1,)
    with pytest.raises(TypeError, match="`mutable` must be a pytree of bools, or a function"):
        make(*args, mutable=mutable)


@pytest.mark.parametrize(
    ("args", "wrt", "named"),
    [
        (lambda model: (model, loss), model_of(), "`wrt` must be a filter of NNX, got Linear"),
        (lambda model: (model, loss), nnx.state(model_of()), "`wrt` must be a filter of NNX"),
        (lambda model: (loss, model), nnx.Param, "`model` must be an nnx.Module, got function"),
        (lambda model: (nnx.state(model), loss), nnx.Param, "`model` must be .*, got State"),
        (lambda model: (model, loss(model)), nnx.Param, "`loss` must be a function of a model"),
    ],
)
def test_arguments_of_nnx_value_fn_in_the_places_of_others_are_named(args, wrt, named):
    with pytest.raises(TypeError, match=named):
        nnx_value_fn(*args(model_of()), wrt=wrt)


def nnx_run(value_fn, **extra):
    """The parameters after four steps, and the report."""
    model = model_of()
    optimizer = nnx.Optimizer(model, egd(0.1, evolve_every=2, sigma=0.3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, extra):
        grads = nnx.grad(loss)(model)
        optimizer.update(model, grads, value_fn=value_fn(model), **extra)

    for _ in range(4):
        step(model, optimizer, extra)
    return nnx.to_pure_dict(nnx.state(model)), optimizer.opt_state.info


def test_a_loss_of_an_nnx_model_gets_the_arguments_that_it_names():
    expected, _ = nnx_run(lambda model: nnx_value_fn(model, loss))
    batch = nnx_run(lambda model: nnx_value_fn(model, loss_of_batch), x=X)[0]
    chex.assert_trees_all_equal(batch, expected)
    # A loss that names none gets none.
    without = nnx_run(lambda model: nnx_value_fn(model, lambda model: loss(model)), x=X)[0]
    chex.assert_trees_all_equal(without, expected)


def test_a_number_of_the_report_is_read_in_nnx_as_the_guide_says():
    _, info = nnx_run(lambda model: nnx_value_fn(model, loss))
    assert bool(info.accepted[...]) == bool(jnp.any(info.accepted[...]))
    assert jnp.isfinite(float(info.child_fitness[...]))


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_a_loss_of_an_nnx_model_that_is_not_wrapped_is_told_of_the_wrapper(jit):
    model = model_of()
    optimizer = nnx.Optimizer(model, egd(0.1, evolve_every=1), wrt=nnx.Param)

    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model), value_fn=loss)

    with pytest.raises(TypeError, match="'State' object is not callable") as caught:
        (nnx.jit(step) if jit else step)(model, optimizer)
    assert any("nnx_value_fn(model, loss)" in note for note in caught.value.__notes__)


def test_an_optimizer_in_the_place_of_a_learning_rate_is_told_of_evolve():
    with pytest.raises(TypeError, match="write `evolve\\(optimizer, ...\\)`"):
        egd(optax.adam(1e-3))


def test_settings_by_name_pass():
    evolve(optax.adam(1e-3), **presets.metric())
    assert egd(0.1, 0.9, True, **presets.safe()).init(jnp.ones(3)).count == 0
    assert jax.tree.leaves(egd(0.1, 0.9).init(jnp.ones(3)).base_state)
