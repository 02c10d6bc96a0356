"""EGD in Flax training loops: linen's `TrainState`, and the fitness of an NNX model.

Needs Flax, which the rest of the library does not import.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
import jax
import optax

from egd_optax._checks import check_function
from egd_optax.base.leaves import flatten, is_masked


class TrainState(train_state.TrainState):
    """Linen's `TrainState`, whose `apply_gradients` passes arguments to the optimizer on.

    Works with any optax optimizer: one that takes no extra arguments is not given any.

    Gradients of a model in FP8 hold the collection `_overwrite_with_gradient`. The optimizer then
    sees `params["params"]` alone, as in linen. `value_fn` and `accept_value_fn` still get the whole
    tree, with the collection as this step leaves it. `base_value_fn` gets the collection that the
    gradients were taken with: pass that function too if the base evaluates, as a line search does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from egd_optax import egd
        >>> from egd_optax.flax import TrainState
        >>> model, x, y = nn.Dense(1), jnp.ones((4, 3)), jnp.ones((4, 1))
        >>> state = TrainState.create(
        ...   apply_fn=model.apply,
        ...   params=model.init(jax.random.key(0), x)["params"],
        ...   tx=egd(0.1, evolve_every=2),
        ... )
        >>> def loss(params): return jnp.mean((model.apply({"params": params}, x) - y) ** 2)
        >>> for _ in range(4):
        ...   state = state.apply_gradients(grads=jax.grad(loss)(state.params), value_fn=loss)
        >>> int(state.step), int(state.opt_state.cycle)
        (4, 2)
    """

    def apply_gradients(self, *, grads: optax.Updates, **kwargs: Any) -> "TrainState":
        """Takes a step of the optimizer.

        Args:
            grads: gradients, a pytree like `params`.
            **kwargs: those named like a field of this state replace it, as in linen;
                `value_fn`, `evolve` and all others go to `tx.update`.

        Returns:
            The state after the step.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        passed_on = {name: value for name, value in kwargs.items() if name not in fields}
        if OVERWRITE_WITH_GRADIENT in grads:
            passed_on |= _of_whole_trees(passed_on, self.params, grads)
        tx = optax.with_extra_args_support(self.tx)
        update = functools.partial(tx.update, **passed_on)
        stepping = self.replace(tx=optax.GradientTransformation(tx.init, update))
        stepped = train_state.TrainState.apply_gradients(stepping, grads=grads, **replaced)
        restored: TrainState = stepped.replace(tx=replaced.get("tx", self.tx))
        return restored


def _of_whole_trees(
    passed_on: dict[str, Any], params: optax.Params, grads: optax.Updates
) -> dict[str, Callable[..., Any]]:
    """The objectives among some arguments, as functions of `params["params"]` alone."""
    # A candidate must be scored with the collection that the state gets. The step replaces the
    # collection by its gradient whatever a cycle chooses. With the old one, a candidate would be
    # selected with scales that it is never used with.
    after = grads[OVERWRITE_WITH_GRADIENT]
    # A line search compares with the value and the slope that the gradients were taken at. With
    # the new collection its objective would jump at the start, and no step might seem to descend.
    before = params[OVERWRITE_WITH_GRADIENT]
    collections = {"value_fn": after, "accept_value_fn": after, "base_value_fn": before}
    return {
        name: _of_whole_tree(fn, collections[name])
        for name, fn in passed_on.items()
        # The optimizer gets values that are no functions, and names them in its error.
        if name in collections and callable(fn)
    }


def _of_whole_tree(fn: Callable[..., Any], collection: Any) -> Callable[..., Any]:
    """A function of the whole tree, as one of its parameters; the collection is fixed."""

    @functools.wraps(fn)  # its signature says which other arguments it takes
    def value_fn(candidate: optax.Params, /, **kwargs: Any) -> Any:
        return fn({"params": candidate, OVERWRITE_WITH_GRADIENT: collection}, **kwargs)

    return value_fn


def nnx_value_fn(
    model: nnx.Module, loss: Callable[..., jax.Array], *, wrt: Any = nnx.Param
) -> Callable[..., jax.Array]:
    """The `value_fn` of an NNX model, for `nnx.Optimizer.update`.

    Args:
        model: the model; read, not changed.
        loss: maps a model to a real scalar, forward only, for example `lambda model:
            loss_fn(model, batch)`. It is given a copy of `model` in evaluation mode,
            with the parameters of a member. Dropout is off, and BatchNorm uses its running
            statistics. All that the copy counts or stores is dropped. It also gets the extra
            arguments of `update` that it names: `optimizer.update(model, grads,
            value_fn=nnx_value_fn(model, loss), batch=batch)` for a `loss(model, batch)`.
        wrt: which variables the optimizer updates, as given to `nnx.Optimizer`.

    Returns:
        A function from the parameters, as `nnx.Optimizer` passes them, to the loss. It raises a
        `ValueError` if it is given other variables than `wrt` selects.

    Raises:
        TypeError: `model` is no NNX module, `loss` is no function, or `wrt` is a model or a state.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from egd_optax import egd
        >>> from egd_optax.flax import nnx_value_fn
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(3, 1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
        >>> optimizer = nnx.Optimizer(model, egd(0.1, evolve_every=2), wrt=nnx.Param)
        >>> x, y = jnp.ones((4, 3)), jnp.ones((4, 1))
        >>> def loss(model): return jnp.mean((model(x) - y) ** 2)
        >>> @nnx.jit
        ... def step(model, optimizer):
        ...   grads = nnx.grad(loss)(model)
        ...   optimizer.update(model, grads, value_fn=nnx_value_fn(model, loss))
        >>> for _ in range(4):
        ...   step(model, optimizer)
        >>> int(optimizer.opt_state.cycle[...])
        2
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be an nnx.Module, got {type(model).__name__}: write "
            "`nnx_value_fn(model, loss)`."
        )
    check_function("loss", loss, "of a model, `lambda model: loss_fn(model, batch)` for example")
    if isinstance(wrt, nnx.Module | nnx.State):
        raise TypeError(
            f"`wrt` must be a filter of NNX, got {type(wrt).__name__}: pass the one that "
            "`nnx.Optimizer` was given, `nnx.Param` for example."
        )
    graphdef, selected, *rest = nnx.split(model, wrt, ...)
    expected = len(jax.tree.leaves(selected))

    @functools.wraps(loss)  # its signature says which other arguments it takes
    def value_fn(params: optax.Params, /, **kwargs: Any) -> jax.Array:
        # Leaves that `optax.masked` hides count too: they are gaps to be filled, not another
        # filter. If a mask hides a whole layer, one gap replaces all leaves of it.
        leaves, _ = flatten(params)
        given, least = len(leaves), 1 if any(map(is_masked, leaves)) else expected
        # `nnx.merge` would else fail on two numbers of leaves, and name neither argument.
        if not least <= given <= expected:
            raise ValueError(
                "`wrt` must be the filter that `nnx.Optimizer(model, tx, wrt=...)` was given, got "
                f"{wrt!r}, which selects {expected} leaves where the optimizer passes {given}: "
                "pass the same filter, `nnx_value_fn(model, loss, wrt=wrt)`."
            )
        member = nnx.merge(graphdef, params, *rest, copy=True)
        member.eval()
        return loss(member, **kwargs)

    return value_fn
