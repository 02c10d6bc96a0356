"""Arrays side by side: small ones in stacks or cut into rows, and the random numbers of many.

XLA compiles each different piece of a program once. An operation on a hundred small arrays would be
a hundred pieces, even with a dozen shapes. So small arrays are one array, on which an operation is
one piece. If the operation treats all entries alike, arrays of any shape are cut into rows. Else
those of one shape are stacked. Both are copies, so large arrays are left alone.

All random numbers that are held come as rows of one draw, so that XLA compiles the generator once.
Each row has its own key and counter.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax.backend import arithmetic, xla

# An array of more entries than this (128 KiB in float32) is left alone.
LARGEST = 2**15
# Numbers in a row, always the same: XLA rounds differently in the remainder of a vector loop.
LENGTH = 64

T = TypeVar("T")
Arrays = tuple[jax.Array, ...]
Shapes = tuple[tuple[int, ...], ...]


class Run(NamedTuple):
    """Arrays of one shape, one after another in a block that is cut into rows; static.

    Attributes:
        leaves: their positions among all arrays.
        shape: the shape of each.
        first: the first row of the first one.
    """

    leaves: tuple[int, ...]
    shape: tuple[int, ...]
    first: int

    @property
    def height(self) -> int:
        """How many rows each of them has."""
        return _row_count(self.shape)

    def stacked(self, rows: jax.Array) -> jax.Array:
        """Returns the arrays in a stack, `[many, *shape]`, from the rows of the block."""
        many, size = len(self.leaves), math.prod(self.shape)
        own = lax.slice_in_dim(rows, self.first, self.first + many * self.height)
        own = own.reshape(many, self.height * LENGTH)
        return own[:, :size].reshape(many, *self.shape)

    def entries(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns vectors that are the rows of the arrays, one after another."""
        many, size = len(self.leaves), math.prod(self.shape)
        flat = [leaves[at].reshape(1, -1) for at in self.leaves]
        spare = self.height * LENGTH - size
        if many == 1:  # as another operand: to pad would be a piece of program for each shape
            one = flat[0].reshape(-1)
            return [one, lax.full_like(one, 0, shape=(spare,))] if spare else [one]
        stack = jnp.concatenate(flat)
        return [jnp.pad(stack, ((0, 0), (0, spare))).reshape(-1)]


class Block(NamedTuple):
    """Arrays of one dtype that are one array, a stack of like ones; static.

    Attributes:
        leaves: the positions of its arrays among all arrays.
        like: shape and dtype of each part of the stack.
        parts: shapes of the random numbers that each of these is made of.
        rows: the first row of each part. None if its numbers are not held in rows.
        runs: its arrays, if they are cut into rows. Empty if each is a part of the stack.
    """

    leaves: tuple[int, ...]
    like: jax.ShapeDtypeStruct
    parts: Shapes
    rows: tuple[int, ...] | None
    runs: tuple[Run, ...] = ()

    @property
    def many(self) -> int:
        """How long the stack is."""
        return sum(self.heights) if self.runs else len(self.leaves)

    @property
    def heights(self) -> list[int]:
        """How many rows each of its arrays has, if they are cut into rows."""
        return [run.height for run in self.runs for _ in run.leaves]

    @property
    def sizes(self) -> np.ndarray:
        """How many entries each of its arrays has, if they are cut into rows."""
        return np.array([math.prod(run.shape) for run in self.runs for _ in run.leaves])

    def cleared(self, rows: jax.Array) -> jax.Array:
        """Returns the rows with zeros behind the end of each array that is cut into them."""
        heights = np.array(self.heights)
        last = (np.cumsum(heights) - 1)[heights > 0]
        filled = np.full(self.many, LENGTH)
        filled[last] -= (heights * LENGTH - self.sizes)[heights > 0]
        if (filled == LENGTH).all():
            return rows
        return jnp.where(np.arange(LENGTH) < filled[:, None], rows, jnp.zeros_like(rows))

    def sums(self, rows: jax.Array) -> jax.Array:
        """Returns the sum over each array that is cut into rows, `[leaves]`, of floats.

        The bits of a sum do not depend on the other arrays. Entries behind the end of an array
        count for nothing.
        """
        heights = np.array(self.heights)
        firsts, widths = np.cumsum(heights) - heights, _powers_of_two(heights)
        of_rows = arithmetic.pairwise_sum(self.cleared(rows))
        of_rows = jnp.pad(of_rows, (0, 1))  # the last one is zero
        found = []
        for width in sorted(set(widths)):  # in the order of the arrays
            of_width = widths == width
            within = np.arange(width) < heights[of_width, None]
            table = np.where(within, firsts[of_width, None] + np.arange(width), self.many)
            found.append(arithmetic.pairwise_sum(of_rows[table]))
        return jnp.concatenate(found)

    def read(self, rows: jax.Array) -> Arrays:
        """Returns the numbers of its stack, `[many, *part]`, from the rows of a draw."""
        parts = []
        for own, shape in zip(self.ranges, self.parts, strict=True):
            numbers = rows[own.start : own.stop].reshape(self.many, -1)
            parts.append(numbers[:, : math.prod(shape)].reshape(self.many, *shape))
        return tuple(parts)

    @property
    def ranges(self) -> list[range]:
        """The rows of each part of all of its stack."""
        assert self.rows is not None  # narrows the type: only blocks in rows are read
        pairs = zip(self.rows, self.parts, strict=True)
        return [range(at, at + self.many * _row_count(shape)) for at, shape in pairs]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How arrays are laid out in blocks; static, and one leaf in a pytree.

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

    def only(self, at: int) -> "Layout":
        """The layout of one block in rows, whose arrays keep their positions."""
        own = self.blocks[at].ranges
        rows, firsts = np.concatenate(own), itertools.accumulate(map(len, own[:-1]), initial=0)
        block = self.blocks[at]._replace(rows=tuple(firsts))
        columns = (self.row_leaf[rows], self.row_start[rows], self.row_of_factor[rows])
        return Layout((block,), *columns)

    def in_order(self, whole: Sequence[T], in_rows: Sequence[T]) -> list[T]:
        """Returns one list of items in the order of the blocks, from those of both kinds."""
        own = dict(zip((*self.whole, *self.in_rows), (*whole, *in_rows), strict=True))
        return [own[at] for at in range(len(self.blocks))]

    def stack(self, leaves: Sequence[jax.Array]) -> Arrays:
        """Returns the blocks, `[many, *shape]`, of arrays that are given by their positions."""
        return tuple(self.stack_one(at, leaves) for at in range(len(self.blocks)))

    def stack_one(self, at: int, leaves: Sequence[jax.Array]) -> jax.Array:
        """Returns one block of these arrays."""
        if runs := self.blocks[at].runs:
            entries = itertools.chain.from_iterable(run.entries(leaves) for run in runs)
            return jnp.concatenate(list(entries)).reshape(-1, LENGTH)
        first, *others = (leaves[position] for position in self.blocks[at].leaves)
        if not others:
            return first[None]
        # Flat first: XLA:CPU takes far longer to compile this for arrays with more axes.
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in (first, *others)])
        return flat.reshape(1 + len(others), *first.shape)


def lay_out(
    leaves: Sequence[Any],
    companions: Sequence[Any],
    parts_of: Callable[[Any], Shapes | None],
    is_entrywise: Callable[[Any], bool],
    apart: frozenset[int] = frozenset(),
) -> Layout:
    """Decides which arrays are one array, and which numbers are held in rows.

    Args:
        leaves: arrays.
        companions: arrays of the same shapes, which are laid out in the same way.
        parts_of: maps the shape and dtype of an array to the shapes of the random numbers that it
            is made of; None if those are drawn in another way.
        is_entrywise: maps the shape and dtype of an array to whether all operations on it go entry
            by entry, with a random number for each.
        apart: positions of arrays that are laid out alone, and whose numbers are not held.
    """
    parts_of, is_entrywise = functools.cache(parts_of), functools.cache(is_entrywise)
    likes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    cut: dict[Any, list[int]] = {}
    alike: dict[Any, list[int]] = {}
    for at, (pair, like) in enumerate(
        zip(zip(leaves, companions, strict=True), likes, strict=True)
    ):
        # One array would vary over all the manual axes that one of its parts varies over.
        kind = tuple((one.dtype, xla.manual_axis_type(one)) for one in pair)
        if at in apart or like.size > LARGEST or any(map(_is_divided, pair)):
            alike[at] = [at]
        elif is_entrywise(like) and _in_rows(leaves[at], parts_of(like) or ()):
            cut.setdefault(kind, []).append(at)
        else:
            alike.setdefault((like.shape, *kind), []).append(at)

    table: list[tuple[int, int, bool]] = []
    blocks = [_cut(positions, likes, parts_of, table) for positions in cut.values()]
    for positions in itertools.chain.from_iterable(map(_stacks, alike.values())):
        like = likes[positions[0]]
        parts = parts_of(like)
        if positions[0] in apart or parts is None or not _in_rows(leaves[positions[0]], parts):
            blocks.extend(Block((at,), like, parts or (), None) for at in positions)
            continue
        firsts = _add_rows(table, positions, [parts] * len(positions))
        blocks.append(Block(tuple(positions), like, parts, firsts))
    columns = np.array(table, np.int64).reshape(-1, 3).T
    dtypes = np.int32, np.uint32, np.bool_
    return Layout(tuple(blocks), *map(np.ndarray.astype, columns, dtypes))


def _cut(
    positions: list[int],
    likes: Sequence[jax.ShapeDtypeStruct],
    parts_of: Callable[[Any], Shapes | None],
    table: list[tuple[int, int, bool]],
) -> Block:
    """A block of arrays that are cut into rows, in the order of their heights and shapes."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for at in positions:
        alike.setdefault(likes[at].shape, []).append(at)
    runs: list[Run] = []
    first = 0
    for shape in sorted(alike, key=lambda shape: (_row_count(shape), shape)):
        for stack in _stacks(alike[shape]):
            runs.append(Run(tuple(stack), shape, first))
            first += len(stack) * _row_count(shape)
    order = tuple(at for run in runs for at in run.leaves)
    firsts = _add_rows(table, order, [parts_of(likes[at]) or () for at in order])
    like = jax.ShapeDtypeStruct((LENGTH,), likes[positions[0]].dtype)
    return Block(order, like, (like.shape,) * len(firsts), firsts, tuple(runs))


def _add_rows(
    table: list[tuple[int, int, bool]], positions: Sequence[int], parts: Sequence[Shapes]
) -> tuple[int, ...]:
    """Adds the rows of some arrays to a table; returns the first row of each of their parts."""
    firsts, starts = [], [0] * len(positions)
    for part in range(len(parts[0])):
        firsts.append(len(table))
        for index, at in enumerate(positions):
            count = _row_count(parts[index][part])
            table.extend(
                (at, starts[index] + LENGTH * row, len(parts[0]) > 1) for row in range(count)
            )
            starts[index] += LENGTH * count
    return tuple(firsts)


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


def _powers_of_two(counts: np.ndarray) -> np.ndarray:
    """The powers of two that are at least as large."""
    return np.array([1 << max(int(count) - 1, 0).bit_length() for count in counts])


def _row_count(shape: tuple[int, ...]) -> int:
    return math.ceil(math.prod(shape) / LENGTH)


def _is_divided(leaf: Any) -> bool:
    """Whether an array is known to be divided over devices: a stack would have to be so too."""
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)
