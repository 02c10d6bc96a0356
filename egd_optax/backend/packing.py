"""Arrays side by side: equal small ones in a stack, and the random numbers of many in rows.

XLA compiles each different piece of a program once. An operation on a hundred small arrays would be
a hundred pieces, even with a dozen shapes. Small arrays of one shape are stacked, so that they are
one piece. A stack is a copy, so large arrays are not stacked.

All random numbers that are held come as rows of one draw, so that XLA compiles the generator once.
Each row has its own key and counter.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# An array of more entries than this (128 KiB in float32) is not stacked.
LARGEST = 2**15
# Numbers in a row, always the same: XLA rounds differently in the remainder of a vector loop.
LENGTH = 64

T = TypeVar("T")
Arrays = tuple[jax.Array, ...]
Shapes = tuple[tuple[int, ...], ...]


class Block(NamedTuple):
    """Arrays of one shape and dtype; static.

    Attributes:
        leaves: their positions among all arrays.
        like: shape and dtype of each.
        parts: shapes of the random numbers that each is made of.
        rows: the first row of each part. None if its numbers are not held in rows.
    """

    leaves: tuple[int, ...]
    like: jax.ShapeDtypeStruct
    parts: Shapes
    rows: tuple[int, ...] | None

    @property
    def many(self) -> int:
        """How many arrays it has."""
        return len(self.leaves)

    def read(self, rows: jax.Array) -> Arrays:
        """Returns the parts of its arrays, `[many, *part]`, from the rows of a draw."""
        assert self.rows is not None  # narrows the type: only blocks in rows are read
        parts = []
        for first, shape in zip(self.rows, self.parts, strict=True):
            each, size = _row_count(shape), math.prod(shape)
            numbers = rows[first : first + self.many * each].reshape(self.many, each * LENGTH)
            parts.append(numbers[:, :size].reshape(self.many, *shape))
        return tuple(parts)


class Layout(NamedTuple):
    """How arrays are laid out in blocks; static.

    Attributes:
        blocks: the blocks.
        row_leaf: for each row the position of its array.
        row_start: for each row the number of its first entry among those of its array.
        row_of_factor: for each row whether its numbers are multiplied with other ones.
    """

    blocks: tuple[Block, ...]
    row_leaf: np.ndarray
    row_start: np.ndarray
    row_of_factor: np.ndarray

    @property
    def in_rows(self) -> tuple[int, ...]:
        """The blocks whose numbers are held in rows."""
        return tuple(at for at, block in enumerate(self.blocks) if block.rows is not None)

    @property
    def whole(self) -> tuple[int, ...]:
        """The other blocks, of one array each."""
        return tuple(at for at, block in enumerate(self.blocks) if block.rows is None)

    @property
    def row_count(self) -> int:
        """How many rows a draw has."""
        return int(self.row_leaf.size)

    def in_order(self, whole: Sequence[T], in_rows: Sequence[T]) -> list[T]:
        """Returns one list of items in the order of the blocks, from those of both kinds."""
        own = dict(zip((*self.whole, *self.in_rows), (*whole, *in_rows), strict=True))
        return [own[at] for at in range(len(self.blocks))]

    def stack(self, leaves: Sequence[jax.Array]) -> Arrays:
        """Returns the blocks, `[many, *shape]`, of arrays that are given by their positions."""
        return tuple(self.stack_one(at, leaves) for at in range(len(self.blocks)))

    def stack_one(self, at: int, leaves: Sequence[jax.Array]) -> jax.Array:
        """Returns one block of these arrays."""
        first, *others = (leaves[position] for position in self.blocks[at].leaves)
        if not others:
            return first[None]
        # Flat first: XLA:CPU takes far longer to compile this for arrays with more axes.
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in (first, *others)])
        return flat.reshape(1 + len(others), *first.shape)

    def unstack(self, blocks: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """Returns the arrays by their positions."""
        pairs = zip(self.blocks, blocks, strict=True)
        return {at: stack[index] for block, stack in pairs for index, at in enumerate(block.leaves)}


def lay_out(
    leaves: Sequence[Any], companions: Sequence[Any], parts_of: Callable[[Any], Shapes | None]
) -> Layout:
    """Decides which arrays are stacked, and which numbers are held in rows.

    Args:
        leaves: arrays.
        companions: arrays of the same shapes, which are laid out in the same way.
        parts_of: maps the shape and dtype of an array to the shapes of the random numbers that it
            is made of; None if those are drawn in another way.
    """
    alike: dict[Any, list[int]] = {}
    for at, (leaf, companion) in enumerate(zip(leaves, companions, strict=True)):
        alone = leaf.size > LARGEST or _is_divided(leaf) or _is_divided(companion)
        kind = at if alone else (leaf.shape, leaf.dtype, companion.dtype)
        alike.setdefault(kind, []).append(at)

    blocks: list[Block] = []
    rows: list[tuple[int, int, bool]] = []
    for positions in itertools.chain.from_iterable(map(_stacks, alike.values())):
        leaf = leaves[positions[0]]
        like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        parts = parts_of(like)
        if parts is None or not _in_rows(leaf, parts):
            blocks.extend(Block((at,), like, parts or (), None) for at in positions)
            continue
        firsts, start = [], 0
        for shape in parts:
            firsts.append(len(rows))
            for at in positions:
                starts = (start + LENGTH * row for row in range(_row_count(shape)))
                rows.extend((at, first, len(parts) > 1) for first in starts)
            start += LENGTH * _row_count(shape)
        blocks.append(Block(tuple(positions), like, parts, tuple(firsts)))
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Layout(
        tuple(blocks),
        table[:, 0].astype(np.int32),
        table[:, 1].astype(np.uint32),
        table[:, 2].astype(np.bool_),
    )


def _stacks(positions: list[int]) -> list[list[int]]:
    """Equal arrays in stacks: about as many as arrays in each, so that the fewest pieces compile.

    Each position in a stack compiles a piece to take the array out. Each stack compiles a piece to
    draw it.
    """
    count = len(positions)
    length = min(range(1, count + 1), key=lambda length: length + sum(divmod(count, length)))
    return [positions[first : first + length] for first in range(0, count, length)]


def _in_rows(leaf: Any, parts: Shapes) -> bool:
    """Whether the numbers of an array are held: few, or a small part of the array."""
    numbers = sum(map(math.prod, parts))
    small = leaf.size <= LARGEST and not _is_divided(leaf)
    return numbers < leaf.size or (small and numbers <= LARGEST)


def _row_count(shape: tuple[int, ...]) -> int:
    return math.ceil(math.prod(shape) / LENGTH)


def _is_divided(leaf: Any) -> bool:
    """Whether an array is known to be divided over devices: a stack would have to be so too."""
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)
