"""Helpers for wrappers that hide leaves, pass no `value_fn`, or inject hyperparameters."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import optax

from egd_optax._checks import STATIC_ARGS, check_base, check_function
from egd_optax.base.leaves import is_masked

__all__ = ["STATIC_ARGS", "bind_value_fn", "with_frozen"]


def with_frozen(value_fn: Callable[..., Any], params: optax.Params) -> Callable[..., Any]:
    """Lets `value_fn` see the leaves that a mask hides from the optimizer.

    `optax.masked` and `optax.partition` show an optimizer its own leaves and
    `optax.MaskedNode` in the place of the others. Members are made of what the optimizer
    sees, so `value_fn` would get them with those gaps.

    Args:
        value_fn: the fitness of whole parameters.
        params: the whole parameters, as passed to `update`; the gaps are filled from them.

    Returns:
        A function like `value_fn` that accepts parameters with gaps.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import egd, with_frozen
        >>> params = {"head": jnp.ones(3), "body": jnp.ones(3)}
        >>> def loss(params): return jnp.sum(params["head"] * params["body"])
        >>> tx = optax.masked(egd(0.1, evolve_every=1), {"head": True, "body": False})
        >>> grads, state = jax.grad(loss)(params), tx.init(params)
        >>> updates, state = tx.update(
        ...   grads, state, params, value_fn=with_frozen(loss, params))
        >>> int(state.inner_state.cycle)
        1
    """

    @functools.wraps(value_fn)
    def filled(member: optax.Params, **kwargs: Any) -> Any:
        whole = jax.tree.map(
            lambda leaf, frozen: frozen if is_masked(leaf) else leaf,
            member,
            params,
            is_leaf=is_masked,
        )
        return value_fn(whole, **kwargs)

    return filled


def bind_value_fn(
    tx: optax.GradientTransformation, value_fn: Callable[..., Any], **extra: Any
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose `update` passes `value_fn` by itself.

    For libraries that call `tx.update(grads, state, params)` without other arguments.

    Args:
        tx: `evolve(...)`, `egd(...)`, or a chain with one of them in it.
        value_fn: the fitness, from parameters as the caller passes them to a scalar. It is
            fixed with the optimizer. If it holds a batch, that is the same on every step, and
            a constant of the program in a jitted step.
        **extra: other arguments of `tx.update`, `accept_value_fn` for example, or arguments
            that `value_fn` names.

    Returns:
        An optimizer with the state of `tx`. Arguments that its caller passes to `update`
        replace these.

    Raises:
        TypeError: `tx` is no optimizer, or `value_fn` no function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from egd_optax import bind_value_fn, egd
        >>> def loss(params): return jnp.sum(params**2)
        >>> tx = bind_value_fn(egd(0.1, evolve_every=2), loss)
        >>> params = jnp.ones(3)
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...   updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...   params = params + updates
        >>> int(state.cycle)
        2
    """
    tx = check_base(tx, "tx")
    check_function("value_fn", value_fn, "of the parameters")
    bound = {"value_fn": value_fn, **extra}

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **passed: Any
    ) -> tuple[optax.Updates, Any]:
        stepped: tuple[optax.Updates, Any] = tx.update(
            updates, state, params, **{**bound, **passed}
        )
        return stepped

    return optax.GradientTransformationExtraArgs(tx.init, update)
