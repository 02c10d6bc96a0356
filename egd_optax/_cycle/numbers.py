"""The normal numbers of many leaves, in one draw.

Threefry is a function of a key and a counter, and one program can read both from a table: the
numbers of a member come in rows of one length, each with the key of its leaf and the counter that
it starts from. They come from the bits that `jax.random.normal` draws for each leaf by itself, for
which XLA would compile the generator once a leaf.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._cycle import threefry, xla
from egd_optax.noise import Normal

# Numbers in a row, always the same: XLA:CPU computes them in vectors or one by one, as the length
# suits, and rounds differently in these, so that a leaf would be drawn other numbers beside others.
LENGTH = 64


class Run(NamedTuple):
    """Numbers of one leaf that follow each other.

    Attributes:
        leaf: whose key they are drawn from, and whose standard deviation they have.
        normal: what they are.
    """

    leaf: int
    normal: Normal

    @property
    def numbers(self) -> int:
        """How many they are."""
        return math.prod(self.normal.shape)


class Rows(NamedTuple):
    """Where the numbers of some runs are: each starts a row.

    Attributes:
        runs: the runs.
        dtype: of the numbers once they are scaled, float32 or wider.
    """

    runs: tuple[Run, ...]
    dtype: jnp.dtype

    def draw(self, keys: jax.Array, stds: jax.Array) -> jax.Array:
        """Draws, scales and rounds them, as `parts.draw` does for the noise of one leaf.

        Args:
            keys: raw keys of the leaves, uint32 `[n, 2]`.
            stds: the standard deviations of their noise, `[n]`.

        Returns:
            `[rows, LENGTH]` of `dtype`. What fills up the last row of a run is without
            use.
        """
        leaf = self._table([run.leaf for run in self.runs], np.int32)
        first = self._table([run.normal.start for run in self.runs], np.uint32)
        within = np.concatenate([np.arange(count) for count in self._counts]) * LENGTH
        starts = jnp.asarray(first + within.astype(np.uint32))
        # What does not depend on the key XLA would compute before the loop, by itself.
        starts, keys = xla.kept_inside(starts, keys)
        rows = threefry.normal_rows(keys[leaf], starts, LENGTH).astype(self.dtype)

        divisor = self._table([run.normal.divisor for run in self.runs], self.dtype)
        if (divisor != 1).any():
            rows = rows / divisor[:, None]
        rows = self._where(
            [run.normal.scaled for run in self.runs],
            stds.astype(self.dtype)[leaf][:, None] * rows,
            rows,
        )
        whole = [run.normal.whole for run in self.runs]
        return self._where(whole, xla.rounded_to_add(rows), xla.rounded_to_multiply(rows))

    def read(self, rows: jax.Array, first: int, many: int) -> jax.Array:
        """The numbers of so many runs of one length, `[many, *shape]`."""
        each = self._counts[first]
        begin = sum(self._counts[:first])
        run = self.runs[first]
        part = rows[begin : begin + many * each].reshape(many, each * LENGTH)
        return part[:, : run.numbers].reshape(many, *run.normal.shape)

    @property
    def _counts(self) -> tuple[int, ...]:
        """How many rows each run takes."""
        return tuple(math.ceil(run.numbers / LENGTH) for run in self.runs)

    def _table(self, of_runs: Sequence[Any], dtype: Any) -> np.ndarray:
        """What is given for each run, for each of its rows, `[rows]`."""
        return np.repeat(np.asarray(of_runs, dtype), self._counts)

    def _where(self, of_runs: Sequence[bool], rows: jax.Array, others: jax.Array) -> jax.Array:
        """The rows of some runs, and others of the others."""
        if all(of_runs):
            return rows
        if not any(of_runs):
            return others
        return jnp.where(self._table(of_runs, np.bool_)[:, None], rows, others)
