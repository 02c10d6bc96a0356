"""Small leaves, side by side: one program for many of them, not one for each.

A network has hundreds of leaves and a handful of shapes. XLA:CPU compiles each operation on a leaf
as a piece of program of its own, and equal pieces once: what is done to small leaves takes far
longer to compile than to run. So leaves of one size are stacked while a cycle runs, and unstacked
where `value_fn` sees them. To take a leaf out of a stack is a piece for each position in it, and to
draw a stack a piece for each stack: there are about as many stacks of a size as leaves in each.

Large leaves stand alone: a stack is a copy, which takes as much memory as its leaves.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle import xla
from egd_optax._cycle.spec import Leaves

T = TypeVar("T")

# A leaf of more numbers than this (128 KiB in float32) is not stacked.
LARGEST = 2**15


class Stacks(NamedTuple):
    """How the mutating leaves stand together.

    Attributes:
        groups: for each entry of a genome the leaves in it, by their position among those that
            mutate. Several are a stack, with a leading axis of as many.
        views: the shape that a leaf has in each entry.
        shapes: the shape of each leaf.
    """

    groups: tuple[tuple[int, ...], ...]
    views: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The leaves in the order in which they stand in a genome."""
        return tuple(at for group in self.groups for at in group)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the leaves of each entry start in that order."""
        lengths = map(len, self.groups[:-1])
        return tuple(itertools.accumulate(lengths, initial=0))[: len(self.groups)]

    @property
    def stacked(self) -> tuple[bool, ...]:
        """Which entries are a stack."""
        return tuple(len(group) > 1 for group in self.groups)

    def viewed(self, leaf: jax.Array, at: int) -> jax.Array:
        """A leaf in the shape that it has in an entry."""
        return leaf if leaf.shape == self.views[at] else leaf.reshape(self.views[at])

    def stack(self, leaves: Sequence[jax.Array], at: int) -> jax.Array:
        """An entry of several leaves."""
        # Flat first: XLA:CPU takes far longer to compile the same of leaves with more axes.
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
        return flat.reshape(len(leaves), *self.views[at])

    def alone(self, entries: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
        """The leaves that stand alone, by their position; without those of entries of None."""
        return {
            group[0]: self._own_shape(entry, group[0])
            for group, entry in zip(self.groups, entries, strict=True)
            if len(group) == 1 and entry is not None
        }

    def taken_out(
        self, entries: Sequence[jax.Array | None], buffers: Sequence[jax.Array], on: jax.Array
    ) -> dict[int, jax.Array]:
        """The leaves of stacks, by their position, where `on` holds; else the buffers.

        Each comes in a buffer of its own. XLA would take a leaf out of its stack within what uses
        it, which is then another piece of program for each layer of a network.

        Args:
            entries: of a genome; those of None are left out.
            buffers: arrays like the leaves of the genome, of any dtype.
            on: bool `[]`.

        Returns:
            Leaves of the dtypes of the buffers.
        """
        # In the shape of a stack: to reshape them in there would be a piece for each shape.
        views = {
            leaf: self.viewed(buffers[leaf], at)
            for at, group in enumerate(self.groups)
            for leaf in group
            if len(group) > 1 and entries[at] is not None
        }

        def out(
            views: dict[int, jax.Array], entries: Sequence[jax.Array | None]
        ) -> dict[int, jax.Array]:
            leaves: dict[int, jax.Array] = {}
            for group, entry in zip(self.groups, entries, strict=True):
                if len(group) > 1 and entry is not None:
                    leaves.update(zip(group, lax.split(entry, (1,) * len(group)), strict=True))
            return {
                at: lax.convert_element_type(lax.squeeze(leaves[at], [0]), view.dtype)
                for at, view in views.items()
            }

        if not views:
            return {}
        leaves = xla.at_most_once(on, out, views, entries)
        return {at: self._own_shape(leaf, at) for at, leaf in leaves.items()}

    def _own_shape(self, leaf: jax.Array, at: int) -> jax.Array:
        return leaf if leaf.shape == self.shapes[at] else leaf.reshape(self.shapes[at])

    def one_by_one(self, fn: Callable[[jax.Array], jax.Array], entries: Leaves) -> Leaves:
        """Maps `fn` of a leaf over the entries, over a stack in a loop: the same bits as alone."""
        pairs = zip(self.groups, entries, strict=True)
        return tuple(lax.map(fn, entry) if len(group) > 1 else fn(entry) for group, entry in pairs)

    def on_entry(
        self, fn: Callable[..., T], at: int, *args: Any, axes: int | tuple[int, ...] = 0
    ) -> T:
        """Maps what belongs to one leaf, or to each of the leaves of a stack.

        Args:
            fn: maps pytrees of arrays to pytrees of arrays.
            at: the entry.
            *args: its pytrees of arrays, with the axis of a stack.
            axes: which axis that is, of all of them or of each.

        Returns:
            The result, with that axis first.
        """
        result: T = (jax.vmap(fn, axes) if len(self.groups[at]) > 1 else fn)(*args)
        return result

    def one_of_each(self, entries: Leaves) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shape and the dtype of a leaf in each entry."""
        pairs = zip(self.stacked, entries, strict=True)
        return tuple(
            jax.ShapeDtypeStruct(entry.shape[stacked:], entry.dtype) for stacked, entry in pairs
        )


def stacks_of(
    leaves: Sequence[jax.Array],
    companions: Sequence[jax.Array],
    view_of: Callable[[jax.Array], tuple[int, ...]],
) -> Stacks:
    """Which leaves stand together: small ones of one size and type.

    Args:
        leaves: the mutating leaves.
        companions: their updates, which are stacked in the same way.
        view_of: the shape in which the noise of a leaf is drawn as in its own.
    """
    alike: dict[Any, list[int]] = {}
    for at, (leaf, companion) in enumerate(zip(leaves, companions, strict=True)):
        alone = leaf.size > LARGEST or is_divided(leaf) or is_divided(companion)
        kind: Any = at
        if not alone:
            view = view_of(leaf)
            kind = tuple(jax.typeof(one.reshape(view)) for one in (leaf, companion))
        alike.setdefault(kind, []).append(at)

    groups, views = [], []
    for kind, members in alike.items():
        length = _stack_length(len(members))
        view = leaves[members[0]].shape if isinstance(kind, int) else kind[0].shape
        for first in range(0, len(members), length):
            groups.append(tuple(members[first : first + length]))
            views.append(view)
    return Stacks(tuple(groups), tuple(views), tuple(leaf.shape for leaf in leaves))


def _stack_length(count: int) -> int:
    """How many of so many leaves to stack, so that the fewest different pieces are compiled."""

    def pieces(length: int) -> int:
        stacks, rest = divmod(count, length)
        return length + stacks + rest

    return min(range(1, count + 1), key=pieces)


def is_divided(leaf: jax.Array) -> bool:
    """Whether a leaf is known to be divided over devices: a stack would have to be so too."""
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)
