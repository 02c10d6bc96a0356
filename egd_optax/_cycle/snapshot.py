"""Stage 1, snapshot: the parent, and which of its leaves a cycle may move."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Leaves = tuple[jax.Array, ...]


class Parent(NamedTuple):
    """The parameters that the base step just produced; member 0 of the population.

    Attributes:
        leaves: every leaf of the parameters, flat; `optax.MaskedNode` counts as a
            leaf, so that masking a leaf does not renumber the ones behind it.
        treedef: the structure that `leaves` unflatten to.
        moving: positions in `leaves` of those that mutate.
    """

    leaves: tuple[jax.Array | optax.MaskedNode, ...]
    treedef: jax.tree_util.PyTreeDef
    moving: tuple[int, ...]

    @property
    def genome(self) -> Leaves:
        """The moving leaves: all that a member has of its own."""
        return tuple(jnp.asarray(self.leaves[at]) for at in self.moving)

    def with_genome(self, genome: Leaves) -> optax.Params:
        """The whole parameters of a member, from its moving leaves."""
        leaves = list(self.leaves)
        for at, leaf in zip(self.moving, genome, strict=True):
            leaves[at] = leaf
        return jax.tree.unflatten(self.treedef, leaves)


def snapshot(params: optax.Params, base_updates: optax.Updates, moving: tuple[int, ...]) -> Parent:
    """Takes the base step and keeps what it led to.

    Args:
        params: the parameters before the step.
        base_updates: the updates of the base optimizer, a pytree like `params`.
        moving: positions of the leaves that mutate, see `moving_leaves`.

    Returns:
        The parent.
    """
    parent = optax.apply_updates(params, base_updates)
    leaves, treedef = flatten(parent)
    return Parent(tuple(leaves), treedef, moving)


def flatten(tree: optax.Params) -> tuple[list[Any], jax.tree_util.PyTreeDef]:
    """Flattens a tree, with the places that `optax.masked` blanked out as leaves."""
    return jax.tree.flatten(tree, is_leaf=is_masked)


def moving_leaves(params: optax.Params, mutable: object) -> tuple[int, ...]:
    """The leaves that mutate: floating or complex ones that `mutable` does not exclude.

    Args:
        params: pytree of arrays or `jax.ShapeDtypeStruct`.
        mutable: None, a pytree of bools that is a prefix of `params`, or a callable
            of `params` that returns one.

    Returns:
        Their positions in the flattened `params`.

    Raises:
        TypeError: a leaf of `mutable` is no bool.
        ValueError: `mutable` is no prefix of `params`, or excludes every leaf.
    """
    leaves, _ = flatten(params)
    can_move = [at for at, leaf in enumerate(leaves) if _is_inexact(leaf)]
    if mutable is None or not leaves:  # none in the placeholder of optax.tree.map_params
        return tuple(can_move)
    allowed = _broadcast(mutable(params) if callable(mutable) else mutable, params)
    moving = tuple(at for at in can_move if allowed[at])
    if can_move and not moving:
        raise ValueError(
            f"`mutable` leaves no floating-point parameter to mutate, got {mutable!r}: "
            "select at least one leaf, or pass None to mutate all of them."
        )
    return moving


def _broadcast(mask: object, params: optax.Params) -> Sequence[bool]:
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(
                f"`mutable` must hold Python bools, got {leaf!r}: the choice is made when "
                "the step is traced, it cannot depend on values."
            )
    try:
        full = jax.tree.broadcast(mask, params, is_leaf=is_masked)
    except ValueError as error:
        raise ValueError(
            f"`mutable` must be a prefix of the parameters' tree, got {mask!r} for "
            f"parameters of structure {jax.tree.structure(params)}: give one bool a leaf, "
            "or one bool for a whole subtree."
        ) from error
    return flatten(full)[0]


def _is_inexact(leaf: Any) -> bool:
    return not is_masked(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def is_masked(leaf: object) -> bool:
    """Whether a leaf is the placeholder that `optax.masked` puts into a tree."""
    return isinstance(leaf, optax.MaskedNode)
