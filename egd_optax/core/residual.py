"""The fractions of integer leaves, which a strategy keeps between cycles.

In a cycle they are in the updates of these leaves, see `backend/fixed_point.py`. Outside the update
of an integer leaf is whole, and in its dtype.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax.backend import fixed_point
from egd_optax.backend.packing import Arrays
from egd_optax.base.leaves import flatten


def first_residual(params: optax.Params, positions: Sequence[int]) -> Any:
    """No fractions yet, for the integers among the leaves that mutate."""
    leaves, treedef = flatten(params)
    zeros = {at: jnp.zeros_like(leaves[at], fixed_point.FRACTION) for at in positions}
    if not zeros:
        return ()
    return jax.tree.unflatten(
        treedef, [zeros.get(at, optax.MaskedNode()) for at in range(len(leaves))]
    )


def with_fractions(
    residual: Any, leaves: Arrays, positions: Sequence[int], updates: Sequence[jax.Array]
) -> Arrays:
    """The updates of the leaves that mutate; those of integers lead to the leaf and its fraction.

    Args:
        residual: of the strategy.
        leaves: those that mutate.
        positions: of these among all leaves.
        updates: of these; those of integers are zeros.
    """
    if not any(map(_is_integer, leaves)):
        return tuple(updates)
    fractions, _ = flatten(residual)
    return tuple(
        jnp.asarray(fractions[at]).astype(fixed_point.UPDATE) if _is_integer(leaf) else update
        for at, leaf, update in zip(positions, leaves, updates, strict=True)
    )


def without_fractions(
    residual: Any, leaves: Arrays, positions: Sequence[int], updates: Sequence[jax.Array]
) -> tuple[Arrays, Any]:
    """The updates after a cycle, those of integers in the dtype of their leaf; and the residual."""
    if not any(map(_is_integer, leaves)):
        return tuple(updates), residual
    fractions, treedef = flatten(residual)
    whole = []
    for at, leaf, update in zip(positions, leaves, updates, strict=True):
        if _is_integer(leaf):
            fractions[at] = fixed_point.fraction(leaf, update)
            update = fixed_point.difference(leaf, fixed_point.point(leaf, update))
        whole.append(update)
    return tuple(whole), jax.tree.unflatten(treedef, fractions)


def without_jump(updates: Arrays) -> Arrays:
    """Zeros like updates of a base that moves nothing; those of integers stay, as fractions."""
    return tuple(
        update if update.dtype == fixed_point.UPDATE else jnp.zeros_like(update)
        for update in updates
    )


def if_left(left: jax.Array, chosen: Arrays, before: Arrays) -> Arrays:
    """The updates that were chosen if these left the parent, else those before.

    Integers keep the updates that were chosen: they lead to the parent, and hold its fractions.
    """
    return tuple(
        new if new.dtype == fixed_point.UPDATE else jnp.where(left, new, old)
        for new, old in zip(chosen, before, strict=True)
    )


def _is_integer(leaf: jax.Array) -> bool:
    return fixed_point.is_integer(leaf.dtype)
