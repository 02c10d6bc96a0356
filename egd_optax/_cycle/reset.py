"""The base optimizer after a jump: its momentum starts anew, its plan goes on."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import xla


def reset_after_jump(
    base: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    updates: optax.Updates,
    jumped: jax.Array,
) -> optax.OptState:
    """The base optimizer's state after a jump: as from `init` at the new parameters.

    Schedules keep their step and injected hyperparameters their values: a jump makes
    the momentum stale, not the user's plan.

    Args:
        base: the base optimizer.
        state: its state after the step.
        params: the parameters before the step.
        updates: what leads to the new ones; added up only after a jump.
        jumped: bool `[]`, whether the cycle left the parent.

    Returns:
        A state of the same structure and dtypes; `state` itself where not `jumped`.
    """

    def renewed(old: Any, params: optax.Params, updates: optax.Updates) -> Any:
        return _renewed(old, base.init(optax.apply_updates(params, updates)))

    if not isinstance(jumped, jax.core.Tracer):  # a loop would be compiled anew on every call
        return renewed(state, params, updates) if jumped else state
    return xla.at_most_once(jumped, renewed, state, params, updates)


def _renewed(state: Any, fresh: Any) -> Any:
    def renew(old: Any, new: Any) -> Any:
        if _is_injected(old):
            return old._replace(inner_state=_renewed(old.inner_state, new.inner_state))
        if _is_schedule(old):
            return old
        return lax.convert_element_type(new, jnp.result_type(old))

    return jax.tree.map(
        renew, state, fresh, is_leaf=lambda node: _is_injected(node) or _is_schedule(node)
    )


def _is_injected(node: Any) -> bool:
    return isinstance(node, optax.InjectStatefulHyperparamsState)


def _is_schedule(node: Any) -> bool:
    # optax keeps the states of its schedules private: they hold a count and no more.
    return getattr(node, "_fields", None) == ("count",)
