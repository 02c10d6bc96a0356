"""The parent: where a cycle starts from and comes back to, and which of its leaves mutate."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import numbers
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """Where an update of few digits starts from, which does not lead everywhere.

    Attributes:
        leaf: an entry before the step.
        step: the dtype of its updates.
    """

    leaf: jax.Array
    step: jnp.dtype = dataclasses.field(metadata={"static": True})

    def reached(self, target: jax.Array) -> jax.Array:
        """The leaf next to a target that an update leads to, see `resume`."""
        # What one update leads to is in rare cases, one of thousands, nearer to another update,
        # that leads elsewhere. What the second leads to is not.
        for _ in range(2):
            target = plus(self.leaf, step_to(target, self.leaf, self.step))
        return target


class Genome(NamedTuple):
    """The mutating leaves of a parent, all that a member has of its own.

    A large leaf that the base step leads to is no buffer: `params + updates` is added up again
    wherever it is needed, for a step holds both in any case. The sum is the same to the bit
    everywhere.

    Attributes:
        params: the entries; those of large leaves before the step.
        updates: what is to be added to these, the base updates; None where nothing is.
        sources: where updates start from that lead to few leaves; None where they have digits
            enough to lead to all.
    """

    params: Leaves
    updates: tuple[jax.Array | None, ...] | None
    sources: tuple[Source | None, ...]

    def leaves(self) -> Leaves:
        """The genome; in the body of a loop only of what `kept_inside` returns."""
        if self.updates is None:
            return self.params
        pairs = zip(self.params, self.updates, strict=True)
        return tuple(leaf if by is None else plus(leaf, by) for leaf, by in pairs)

    def of(self, leaves: Leaves) -> "Genome":
        """Others, which the updates of the same step are to lead to."""
        return self._replace(params=leaves, updates=None)

    def reached(self, targets: Leaves) -> Leaves:
        """The leaves next to some targets that updates lead to, in the dtypes of the base's."""
        return tuple(self.entry_reached(at, leaf) for at, leaf in enumerate(targets))

    def entry_reached(self, at: int, target: jax.Array) -> jax.Array:
        """That of one entry."""
        start = self.sources[at]
        return target if start is None else start.reached(target)

    def in_form(self, form: Callable[[Leaves], Leaves]) -> "Genome":
        """The same in the form in which devices share it."""
        pairs = zip(self.sources, self.params, strict=True)
        starts = form(tuple(leaf if start is None else start.leaf for start, leaf in pairs))
        sources = tuple(
            start if start is None else dataclasses.replace(start, leaf=leaf)
            for start, leaf in zip(self.sources, starts, strict=True)
        )
        return Genome(form(self.leaves()), None, sources)

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

    def own_leaves(self, genome: Leaves) -> Leaves:
        """The mutating leaves of a member one by one, in their own order and shapes."""
        own = self.leaves_of(genome)
        return tuple(own[at] for at in range(len(own)))

    def leaves_of(self, entries: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
        """The leaves of those entries that are not None, by their positions in that order."""
        always = ~xla.impossible(self.witness)
        return self.stacks.alone(entries) | self.stacks.taken_out(entries, self.before, always)

    def wide_leaves(self, entries: Leaves) -> Leaves:
        """The leaves of entries in float32 or wider, in their own order and shapes."""
        before = tuple(map(widened, self.before))
        return self._replace(before=before).own_leaves(tuple(map(widened, entries)))

    def entries_of(self, own: Sequence[jax.Array]) -> Leaves:
        """The entries of a genome, from its leaves, in the dtypes of the parameters."""

        def entry(at: int, group: tuple[int, ...]) -> jax.Array:
            leaves = [own[leaf].astype(self.before[leaf].dtype) for leaf in group]
            alone = len(group) == 1
            return self.stacks.viewed(leaves[0], at) if alone else self.stacks.stack(leaves, at)

        return tuple(entry(at, group) for at, group in enumerate(self.stacks.groups))

    def with_own_leaves(self, own: Leaves) -> optax.Params:
        """The whole parameters of a member."""
        leaves = list(self.leaves)
        for position, leaf in zip(self.mutating, own, strict=True):
            leaves[position] = leaf
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
    sources, treedef = flatten(params)
    steps = aligned(base_updates, params)
    leaves = [
        leaf if by is None or is_masked(leaf) else optax.apply_updates(leaf, by)
        for leaf, by in zip(sources, steps, strict=True)
    ]
    mutable = tuple(jnp.asarray(sources[at]) for at in mutating)
    updates = tuple(jnp.asarray(steps[at]) for at in mutating)
    stacks = stacks_of(mutable, updates, noise._view)

    def entry(at: int) -> tuple[jax.Array, jax.Array | None]:
        group = stacks.groups[at]
        if len(group) == 1:
            return stacks.viewed(mutable[group[0]], at), stacks.viewed(updates[group[0]], at)
        # Added up already in a stack, which is a copy anyhow.
        return stacks.stack([plus(mutable[leaf], updates[leaf]) for leaf in group], at), None

    def source(at: int) -> Source | None:
        group = stacks.groups[at]
        step = updates[group[0]].dtype
        if step == wide_dtype(step):
            return None
        before = [mutable[leaf] for leaf in group]
        stacked = len(group) > 1
        return Source(stacks.stack(before, at) if stacked else stacks.viewed(before[0], at), step)

    entries = tuple(map(entry, range(len(stacks.groups))))
    genome = Genome(
        params=tuple(leaf for leaf, _ in entries),
        updates=tuple(by for _, by in entries),
        sources=tuple(map(source, range(len(stacks.groups)))),
    )
    return Parent(tuple(leaves), treedef, mutating, stacks, genome, mutable, cycle)


def plus(leaf: jax.Array, by: jax.Array) -> jax.Array:
    """A leaf with something added, in the dtype of the leaf; the same to the bit everywhere."""
    wide = _wide_enough(leaf.dtype, by.dtype)
    return xla.rounded_to(leaf.astype(wide) + by.astype(wide), leaf.dtype).astype(leaf.dtype)


def step_to(target: jax.Array, source: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The update of a dtype that leads from a leaf to another one, or as near as it leads."""
    wide = _wide_enough(target.dtype, dtype)
    by = target.astype(wide) - source.astype(wide)
    return xla.rounded_to(by, dtype).astype(dtype)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype that a leaf is computed in: float32, or its own where that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(leaf: jax.typing.ArrayLike) -> jax.Array:
    """A leaf in the dtype that it is computed in."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(wide_dtype(leaf.dtype))


def _wide_enough(*dtypes: jnp.dtype) -> jnp.dtype:
    """A dtype that leaves of all of these are computed in; holds them exactly."""
    return functools.reduce(jnp.promote_types, map(wide_dtype, dtypes))


def idle_updates(
    base_updates: optax.Updates, params: optax.Params, mutating: tuple[int, ...]
) -> Leaves:
    """The base updates of the leaves that mutate, in dtypes that hold these as well; exact."""
    updates, leaves = aligned(base_updates, params), flatten(params)[0]

    def wide_enough(update: jax.Array, leaf: jax.Array) -> jax.Array:
        dtypes = jnp.result_type(update), jnp.result_type(leaf)
        same = dtypes[0] == dtypes[1]
        return lax.convert_element_type(update, dtypes[0] if same else _wide_enough(*dtypes))

    return tuple(wide_enough(updates[at], leaves[at]) for at in mutating)


def replaced(
    base_updates: optax.Updates, params: optax.Params, mutating: tuple[int, ...], leaves: Leaves
) -> optax.Updates:
    """The base updates, with others for the leaves that mutate."""
    updates = aligned(base_updates, params)
    for at, leaf in zip(mutating, leaves, strict=True):
        updates[at] = leaf
    return jax.tree.unflatten(flatten(params)[1], updates)


def resume(
    jumped: jax.Array,
    leaves: Leaves,
    params: optax.Params,
    base_updates: optax.Updates,
    mutating: tuple[int, ...],
) -> optax.Updates:
    """The update that leads from `params` to what the cycle chose.

    In the dtypes of the base updates, also on a step with a cycle, so that whatever chooses
    between the two can. A bfloat16 difference of bfloat16 parameters misses most targets: members
    are evaluated, and children too, at what such a difference leads to.

    Args:
        jumped: bool `[]`, whether the cycle left the parent.
        leaves: the mutating leaves of what it chose where `jumped`, else their base updates.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer, a pytree like `params`.
        mutating: positions of the leaves that mutate.

    Returns:
        Updates like the base updates: these where the parent stands, and in leaves that do not
        mutate.
    """
    sources, steps = flatten(params)[0], aligned(base_updates, params)

    def update(leaf: jax.Array, source: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jnp.where(jumped, step_to(leaf, source, dtype), leaf.astype(dtype))

    updates = (
        update(leaf, jnp.asarray(sources[at]), jnp.result_type(steps[at]))
        for at, leaf in zip(mutating, leaves, strict=True)
    )
    return replaced(base_updates, params, mutating, tuple(updates))


def flatten(tree: optax.Params) -> tuple[list[Any], jax.tree_util.PyTreeDef]:
    """Flattens a tree, with the places that `optax.masked` blanked out as leaves."""
    return jax.tree.flatten(tree, is_leaf=is_masked)


def aligned(updates: optax.Updates, params: optax.Params) -> list[Any]:
    """The updates of each leaf of the parameters; None where there is none, of a function say."""
    found: list[Any] = flatten(params)[1].flatten_up_to(updates)
    return found


def mutating_leaves(
    params: optax.Params, mutable: object, updates: optax.Updates | None = None
) -> tuple[int, ...]:
    """The leaves that mutate: floating or complex ones that `mutable` does not exclude.

    Args:
        params: pytree of arrays or `jax.ShapeDtypeStruct`.
        mutable: None, a pytree of bools that is a prefix of `params`, or a callable
            of `params` that returns one. A pytree may be callable too, as modules are: it is one
            if all of its leaves are bools.
        updates: the base updates, once there are some: a leaf without one stays as it is.

    Returns:
        Their positions in the flattened `params`.

    Raises:
        TypeError: a leaf of `mutable` is no bool.
        ValueError: `mutable` is no prefix of `params`, or excludes every leaf.
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
    mutating = tuple(at for at in inexact if allowed[at])
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
    if is_masked(leaf) or not (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)):
        return False
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def is_masked(leaf: object) -> bool:
    """Whether a leaf is the placeholder that `optax.masked` puts into a tree."""
    return isinstance(leaf, optax.MaskedNode)
