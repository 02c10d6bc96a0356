"""Stage 6, resume: the outcome of a cycle becomes an update; the base optimizer goes on."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle.branch import when
from egd_optax._cycle.noise import wide_dtype
from egd_optax._cycle.snapshot import Leaves, flatten


def carried(base_updates: optax.Updates, params: optax.Params, moving: tuple[int, ...]) -> Leaves:
    """The base updates of the leaves that mutate, in dtypes that hold these as well; exact."""
    updates, _ = flatten(base_updates)
    leaves, _ = flatten(params)

    def wide_enough(update: jax.Array, leaf: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(jnp.result_type(update), jnp.result_type(leaf))
        return lax.convert_element_type(update, dtype)

    return tuple(wide_enough(updates[at], leaves[at]) for at in moving)


def replaced(base_updates: optax.Updates, moving: tuple[int, ...], leaves: Leaves) -> optax.Updates:
    """The base updates, with others for the leaves that mutate."""
    updates, treedef = flatten(base_updates)
    for at, leaf in zip(moving, leaves, strict=True):
        updates[at] = leaf
    return jax.tree.unflatten(treedef, updates)


def resume(
    moved: jax.Array,
    leaves: Leaves,
    params: optax.Params,
    base_updates: optax.Updates,
    moving: tuple[int, ...],
) -> optax.Updates:
    """The update that leads from `params` to what the cycle chose.

    A bfloat16 difference of bfloat16 parameters misses its target, where a float32 one
    lands on it: `optax.apply_updates` adds in the wider dtype and casts the sum. The
    steps without a cycle return the same dtypes as those with one.

    Args:
        moved: bool `[]`, whether the cycle left the parent.
        leaves: the moving leaves of what it chose where `moved`, else their base updates.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer, a pytree like `params`.
        moving: positions of the leaves that mutate.

    Returns:
        Updates like the base updates, those of moving leaves in float32 or wider; the base
        updates where the parent stands, and in leaves that do not move.
    """
    sources, _ = flatten(params)

    def update(leaf: jax.Array, source: jax.Array) -> jax.Array:
        wide = jnp.promote_types(leaf.dtype, wide_dtype(source.dtype))
        leaf = leaf.astype(wide)
        return jnp.where(moved, leaf - source.astype(wide), leaf)

    updates = (
        update(leaf, jnp.asarray(sources[at])) for at, leaf in zip(moving, leaves, strict=True)
    )
    return replaced(base_updates, moving, tuple(updates))


def reset_base_state(
    base: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    jumped: jax.Array,
) -> optax.OptState:
    """The base optimizer's state after a jump: as from `init` at the new parameters.

    Schedules keep their step and injected hyperparameters their values: a jump makes
    the momentum stale, not the user's plan.

    Args:
        base: the base optimizer.
        state: its state after the step.
        params: the parameters after the step.
        jumped: bool `[]`, whether the cycle left the parent.

    Returns:
        A state of the same structure and dtypes; `state` itself where not `jumped`.
    """
    return when(jumped, lambda old, new: _renewed(old, base.init(new)), state, params)


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
