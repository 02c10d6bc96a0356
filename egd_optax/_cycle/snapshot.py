"""Stage 1, snapshot: the parent, and which of its leaves a cycle may move."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._cycle.noise import rounded_to, wide_dtype

Leaves = tuple[jax.Array, ...]
T = TypeVar("T")


class Genome(NamedTuple):
    """The moving leaves of a parent, all that a member has of its own.

    Those that the base step leads to are no buffers: `params + updates` is added up again
    wherever it is needed, for a step holds both in any case. The sum is the same to the bit
    everywhere.

    Attributes:
        params: the moving leaves of the parameters before the step; or the genome itself.
        updates: their base updates; None where there is nothing to add.
    """

    params: Leaves
    updates: Leaves | None = None

    def leaves(self) -> Leaves:
        """The genome; in the body of a loop only of what `beside` returns."""
        if self.updates is None:
            return self.params
        return tuple(map(moved, self.params, self.updates))

    def beside(self, value: T) -> tuple["Genome", T]:
        """The genome for the body of a loop, and a value that differs from trip to trip.

        XLA would move the sum out of the loop, and hold it. Both must be used.
        """
        result: tuple[Genome, T] = lax.optimization_barrier((self, value))
        return result


class Parent(NamedTuple):
    """What a generation starts from; member 0 of the population.

    Attributes:
        leaves: every leaf of the parameters, flat, without use where it mutates;
            `optax.MaskedNode` counts as a leaf, so that masking one does not renumber the
            ones behind it.
        treedef: the structure that `leaves` unflatten to.
        moving: positions in `leaves` of those that mutate.
        genome: those.
    """

    leaves: tuple[jax.Array | optax.MaskedNode, ...]
    treedef: jax.tree_util.PyTreeDef
    moving: tuple[int, ...]
    genome: Genome

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
    leaves, treedef = flatten(optax.apply_updates(params, base_updates))
    sources, steps = flatten(params)[0], flatten(base_updates)[0]
    genome = Genome(
        tuple(jnp.asarray(sources[at]) for at in moving),
        tuple(jnp.asarray(steps[at]) for at in moving),
    )
    return Parent(tuple(leaves), treedef, moving, genome)


def moved(leaf: jax.Array, by: jax.Array) -> jax.Array:
    """A leaf with something added, in the dtype of the leaf; the same to the bit everywhere."""
    wide = jnp.promote_types(wide_dtype(leaf.dtype), by.dtype)
    return rounded_to(leaf.astype(wide) + by.astype(wide), leaf.dtype).astype(leaf.dtype)


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
