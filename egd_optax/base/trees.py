"""Parameters and updates as flat lists, with the places that a mask blanked out."""

from typing import Any

import jax
import optax


def flatten(tree: optax.Params) -> tuple[list[Any], jax.tree_util.PyTreeDef]:
    """Flattens a tree; an `optax.MaskedNode` is a leaf, so that masks renumber no other leaf."""
    return jax.tree.flatten(tree, is_leaf=is_masked)


def aligned(updates: optax.Updates, params: optax.Params) -> list[Any]:
    """The update of each leaf of the parameters; None if it has none, as functions have."""
    updates_of_leaves: list[Any] = flatten(params)[1].flatten_up_to(updates)
    return updates_of_leaves


def replaced(
    updates: optax.Updates,
    params: optax.Params,
    positions: tuple[int, ...],
    leaves: tuple[jax.Array, ...],
) -> optax.Updates:
    """The updates, with other leaves at some positions."""
    updates_of_leaves = aligned(updates, params)
    for at, leaf in zip(positions, leaves, strict=True):
        updates_of_leaves[at] = leaf
    return jax.tree.unflatten(flatten(params)[1], updates_of_leaves)


def is_masked(leaf: object) -> bool:
    """Whether a leaf is the placeholder that `optax.masked` puts into a tree."""
    return isinstance(leaf, optax.MaskedNode)
