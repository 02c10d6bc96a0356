"""The parent: where a cycle starts from and comes back to, and which of its leaves mutate."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._cycle import xla
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.stacks import Stacks, stacks_of
from egd_optax.noise import Noise

T = TypeVar("T")


class Genome(NamedTuple):
    """The mutating leaves of a parent, all that a member has of its own.

    A large leaf that the base step leads to is no buffer: `params + updates` is added up again
    wherever it is needed, for a step holds both in any case. The sum is the same to the bit
    everywhere.

    Attributes:
        params: the entries; those of large leaves before the step.
        updates: what is to be added to these, the base updates; None where nothing is.
    """

    params: Leaves
    updates: tuple[jax.Array | None, ...] | None = None

    def leaves(self) -> Leaves:
        """The genome; in the body of a loop only of what `kept_inside` returns."""
        if self.updates is None:
            return self.params
        pairs = zip(self.params, self.updates, strict=True)
        return tuple(leaf if by is None else plus(leaf, by) for leaf, by in pairs)

    def kept_inside(self, varying: T) -> tuple["Genome", T]:
        """The same for the body of a loop, with a value that differs from trip to trip."""
        return xla.kept_inside(self, varying)


class Parent(NamedTuple):
    """What a generation starts from; member 0 of the population.

    Attributes:
        leaves: every leaf of the parameters, flat, without use where it mutates;
            `optax.MaskedNode` counts as a leaf, so that masking one does not renumber the
            ones behind it.
        treedef: the structure that `leaves` unflatten to.
        mutating: positions in `leaves` of those that mutate.
        stacks: which of those stand together in a genome.
        genome: those.
        before: those before the step, one by one.
        witness: the index of the cycle, see `xla.impossible`.
    """

    leaves: tuple[jax.Array | optax.MaskedNode, ...]
    treedef: jax.tree_util.PyTreeDef
    mutating: tuple[int, ...]
    stacks: Stacks
    genome: Genome
    before: Leaves
    witness: jax.Array

    def with_genome(self, genome: Leaves) -> optax.Params:
        """The whole parameters of a member, from its mutating leaves."""
        leaves = list(self.leaves)
        always = ~xla.impossible(self.witness)
        own = self.stacks.alone(genome) | self.stacks.taken_out(genome, self.before, always)
        for at, position in enumerate(self.mutating):
            leaves[position] = own[at]
        return jax.tree.unflatten(self.treedef, leaves)


def snapshot(
    params: optax.Params,
    base_updates: optax.Updates,
    mutating: tuple[int, ...],
    noise: Noise,
    cycle: jax.Array,
) -> Parent:
    """Takes the base step and keeps what it led to.

    Args:
        params: the parameters before the step.
        base_updates: the updates of the base optimizer, a pytree like `params`.
        mutating: positions of the leaves that mutate, see `mutating_leaves`.
        noise: what they mutate by.
        cycle: int32 `[]`, index of the cycle.

    Returns:
        The parent.
    """
    leaves, treedef = flatten(optax.apply_updates(params, base_updates))
    sources, steps = flatten(params)[0], flatten(base_updates)[0]
    mutable = tuple(jnp.asarray(sources[at]) for at in mutating)
    updates = tuple(jnp.asarray(steps[at]) for at in mutating)
    stacks = stacks_of(mutable, updates, noise._view)

    def entry(at: int) -> tuple[jax.Array, jax.Array | None]:
        group = stacks.groups[at]
        if len(group) == 1:
            return stacks.viewed(mutable[group[0]], at), stacks.viewed(updates[group[0]], at)
        # Added up already in a stack, which is a copy anyhow.
        return stacks.stack([plus(mutable[leaf], updates[leaf]) for leaf in group], at), None

    entries = tuple(map(entry, range(len(stacks.groups))))
    genome = Genome(tuple(leaf for leaf, _ in entries), tuple(by for _, by in entries))
    return Parent(tuple(leaves), treedef, mutating, stacks, genome, mutable, cycle)


def plus(leaf: jax.Array, by: jax.Array) -> jax.Array:
    """A leaf with something added, in the dtype of the leaf; the same to the bit everywhere."""
    wide = jnp.promote_types(wide_dtype(leaf.dtype), by.dtype)
    return xla.rounded_to(leaf.astype(wide) + by.astype(wide), leaf.dtype).astype(leaf.dtype)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a leaf is computed in: float32, or its own where that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def idle_updates(
    base_updates: optax.Updates, params: optax.Params, mutating: tuple[int, ...]
) -> Leaves:
    """The base updates of the leaves that mutate, in dtypes that hold these as well; exact."""
    updates, _ = flatten(base_updates)
    leaves, _ = flatten(params)

    def wide_enough(update: jax.Array, leaf: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(jnp.result_type(update), jnp.result_type(leaf))
        return lax.convert_element_type(update, dtype)

    return tuple(wide_enough(updates[at], leaves[at]) for at in mutating)


def replaced(
    base_updates: optax.Updates, mutating: tuple[int, ...], leaves: Leaves
) -> optax.Updates:
    """The base updates, with others for the leaves that mutate."""
    updates, treedef = flatten(base_updates)
    for at, leaf in zip(mutating, leaves, strict=True):
        updates[at] = leaf
    return jax.tree.unflatten(treedef, updates)


def resume(
    jumped: jax.Array,
    leaves: Leaves,
    params: optax.Params,
    base_updates: optax.Updates,
    mutating: tuple[int, ...],
) -> optax.Updates:
    """The update that leads from `params` to what the cycle chose.

    A bfloat16 difference of bfloat16 parameters misses its target, where a float32 one
    lands on it: `optax.apply_updates` adds in the wider dtype and casts the sum. The
    steps without a cycle return the same dtypes as those with one.

    Args:
        jumped: bool `[]`, whether the cycle left the parent.
        leaves: the mutating leaves of what it chose where `jumped`, else their base updates.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer, a pytree like `params`.
        mutating: positions of the leaves that mutate.

    Returns:
        Updates like the base updates, those of mutating leaves in float32 or wider; the base
        updates where the parent stands, and in leaves that do not mutate.
    """
    sources, _ = flatten(params)

    def update(leaf: jax.Array, source: jax.Array) -> jax.Array:
        wide = jnp.promote_types(leaf.dtype, wide_dtype(source.dtype))
        leaf = leaf.astype(wide)
        return jnp.where(jumped, leaf - source.astype(wide), leaf)

    updates = (
        update(leaf, jnp.asarray(sources[at])) for at, leaf in zip(mutating, leaves, strict=True)
    )
    return replaced(base_updates, mutating, tuple(updates))


def flatten(tree: optax.Params) -> tuple[list[Any], jax.tree_util.PyTreeDef]:
    """Flattens a tree, with the places that `optax.masked` blanked out as leaves."""
    return jax.tree.flatten(tree, is_leaf=is_masked)


def mutating_leaves(params: optax.Params, mutable: object) -> tuple[int, ...]:
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
    inexact = [at for at, leaf in enumerate(leaves) if _is_inexact(leaf)]
    if mutable is None or not leaves:  # none in the placeholder of optax.tree.map_params
        return tuple(inexact)
    allowed = _broadcast(mutable(params) if callable(mutable) else mutable, params)
    mutating = tuple(at for at in inexact if allowed[at])
    if inexact and not mutating:
        raise ValueError(
            f"`mutable` leaves no floating-point parameter to mutate, got {mutable!r}: "
            "select at least one leaf, or pass None to mutate all of them."
        )
    return mutating


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
