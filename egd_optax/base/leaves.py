"""Parameters and updates as flat lists, with the places that a mask blanked out; which mutate."""

from collections.abc import Sequence
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax.backend import fixed_point


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


def mutating_leaves(
    params: optax.Params,
    mutable: object,
    updates: optax.Updates | None = None,
    *,
    integers: bool = False,
) -> tuple[int, ...]:
    """The leaves that mutate: floating or complex ones that `mutable` does not exclude.

    Integers mutate only if `mutable` selects them and the noise moves them.

    Args:
        params: pytree of arrays or `jax.ShapeDtypeStruct`.
        mutable: None, a pytree of bools that is a prefix of `params`, or a callable
            of `params` that returns one. A callable whose leaves are all bools, as a module may
            be, counts as a pytree.
        updates: the base updates, once there are some. A leaf without one stays as it is.
        integers: whether the noise moves integers.

    Returns:
        Their positions in the flattened `params`.

    Raises:
        TypeError: a leaf of `mutable` is no bool.
        ValueError: `mutable` is no prefix of `params`, or excludes every leaf, or selects integers
            that the noise does not move.
    """
    leaves, _ = flatten(params)
    steps = leaves if updates is None else aligned(updates, params)
    inexact = [
        at
        for at, (leaf, step) in enumerate(zip(leaves, steps, strict=True))
        if _is_inexact(leaf) and step is not None
    ]
    if mutable is None or not leaves:  # none in the placeholder of optax.tree.map_params
        return tuple(inexact)
    chosen = mutable(params) if callable(mutable) and not _is_mask(mutable) else mutable
    allowed = _broadcast(chosen, params)
    selected = [
        at
        for at, leaf in enumerate(leaves)
        if allowed[at] and _is_integer(leaf) and _checked_integer(leaf, integers)
    ]
    mutating = tuple(sorted([at for at in inexact if allowed[at]] + selected))
    if inexact and not mutating:
        raise ValueError(
            f"`mutable` leaves no floating-point parameter to mutate, got {mutable!r}: "
            "select at least one leaf, or pass None to mutate all of them."
        )
    return mutating


def _is_mask(tree: object) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(isinstance(leaf, (bool, np.bool_)) for leaf in leaves)


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
    return _is_number(leaf) and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _is_integer(leaf: Any) -> bool:
    return _is_number(leaf) and fixed_point.is_integer(jnp.result_type(leaf))


def _is_number(leaf: Any) -> bool:
    return not is_masked(leaf) and (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number))


def _checked_integer(leaf: Any, integers: bool) -> bool:
    """Whether an integer leaf that `mutable` selects mutates; raises if it should and cannot."""
    dtype = jnp.result_type(leaf)
    if fixed_point.fits(dtype) == integers:
        return integers
    what = f"a leaf of {dtype} and shape {jnp.shape(leaf)}"
    if integers:
        raise ValueError(
            f"`mutable` must select integers of at most {fixed_point.BITS} bits, got {what}: "
            "exclude it, or cast it to int8."
        )
    raise ValueError(
        f"`mutable` must select no integers without a noise that moves them, got {what}: pass "
        "`noise=noise.lattice()`, or exclude it."
    )
