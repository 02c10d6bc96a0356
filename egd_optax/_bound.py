"""`value_fn` for callers that have no room for it in their call of `update`."""

from collections.abc import Callable
from typing import Any

import optax

from egd_optax._checks import check_base, check_function


def bind_value_fn(
    tx: optax.GradientTransformation, value_fn: Callable[..., Any], **extra: Any
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose `update` passes `value_fn` by itself.

    For libraries that call `tx.update(grads, state, params)` and nothing more.

    Args:
        tx: `evolve(...)`, `egd(...)`, or a chain with one of them in it.
        value_fn: the fitness, from parameters as the caller passes them to a scalar. It is
            fixed with the optimizer: a batch that it holds is the same on every step, and in
            a jitted step it is a constant of the program.
        **extra: other arguments of `tx.update`, such as `accept_value_fn`, or arguments that
            `value_fn` names.

    Returns:
        An optimizer with the state of `tx`. What its caller passes to `update` comes first.

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
