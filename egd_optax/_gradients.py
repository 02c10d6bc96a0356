"""The gradients that a base gets, also if there are none, or none of integers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax.base import arguments
from egd_optax.base.integers import with_gradients
from egd_optax.noise.interface import moves_integers


def gradients(
    step: Any,
    updates: optax.Updates | None,
    base_state: optax.OptState,
    params: optax.Params,
    base_args: dict[str, Any],
) -> optax.Updates:
    """The gradients; zeros for those that nobody looks at, which XLA drops.

    Args:
        step: the optimizer, a `Step`.
        updates: the gradients; None for a base that looks at none.
        base_state: of the base before the step.
        params: the parameters.
        base_args: the other arguments of the base.

    Raises:
        ValueError: there are none, and the base looks at them.
    """
    if updates is not None:
        hides = moves_integers(step.spec.noise)
        return with_gradients(updates, params, step.spec.mutable) if hides else updates

    def zeros_like(leaf: Any) -> jax.Array | None:
        return jnp.zeros_like(leaf) if isinstance(leaf, arguments.NUMBERS) else None

    zeros = jax.tree.map(zeros_like, params)
    if step.black_box.traits(zeros, base_state, params, base_args).moves:
        raise ValueError(
            "`updates` must be the gradients, got None, and the base steps along them: pass "
            "`jax.grad(loss)(params)`, or take `optax.set_to_zero()` as the base."
        )
    return zeros
