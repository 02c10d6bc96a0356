"""`value_fn` under `optax.masked` and `optax.partition`, which blank out leaves."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import optax

from egd_optax._cycle.parent import is_masked


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
