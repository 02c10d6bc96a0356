"""`low_rank`: noise of matrices that is a product of two factors."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax

from egd_optax._checks import check_axes, check_size
from egd_optax._written import Written, settle
from egd_optax.noise.interface import Noise, Parts, check_scale

# Axes of a leaf, or a function of its shape and dtype that returns them.
Axes = int | Sequence[int] | Callable[[jax.ShapeDtypeStruct], int | Sequence[int]]


def low_rank(
    rank: int = 1, relative: bool = True, min_scale: float = 1e-3, batch_axis: Axes = ()
) -> Noise:
    """Noise A B^T / sqrt(rank) for leaves of two axes or more, far cheaper to draw.

    A has a row for every index of all axes but the last. These are height, width and input channels
    of a kernel, and the vocabulary of an embedding. B has a row for every index of the last axis.
    The entries of A and B are independent normal numbers. The standard deviation of every entry is
    that of `gaussian`. Vectors and scalars are drawn in full. So are leaves with at most as many
    entries as A and B would have.

    Args:
        rank: columns of A and B. A higher rank is closer to normal noise and costs more.
        relative: whether `sigma` is a fraction of the root mean square of each leaf; False: in
            units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters.
        batch_axis: axes along which a leaf is a stack of matrices, as in `jax.nn.initializers`.
            Pass an axis or a sequence of axes for every leaf of two axes or more. Or pass a
            function that maps a leaf's `jax.ShapeDtypeStruct` to these. Each matrix gets its own
            factors. Without it the layers of a leaf `[layers, inputs, outputs]` of `jax.lax.scan`
            share B, so that no layer moves independently of the others. Leaves that have fewer than
            two other axes, as biases `[layers, width]`, are drawn in full.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `rank` is below 1, `min_scale` is negative or not finite, or a leaf does not
            have the axes of `batch_axis` when a step is traced.

    Cost:
        `rank * (rows + columns)` normal numbers for every matrix and member, with `batch_axis`
        for every matrix of a stack. No member is stored, in any memory mode: members that recombine
        are drawn again, into the sum. Along a `population_axis` each device sums all of a leaf that
        has a `batch_axis`.

    References:
        Sarkar et al., `Evolution Strategies at the Hyperscale
        <https://arxiv.org/abs/2511.16652>`_, 2025.

    Example:
        >>> from egd_optax import egd, noise
        >>> noise.low_rank(rank=2)
        noise.low_rank(rank=2, relative=True, min_scale=0.001, batch_axis=())
        >>> tx = egd(0.1, noise=noise.low_rank())

        A network of twelve layers under one `jax.lax.scan`, and an embedding:

        >>> layers = lambda leaf: 0 if leaf.shape[0] == 12 else ()
        >>> tx = egd(0.1, noise=noise.low_rank(batch_axis=layers))
    """
    return _LowRank(rank, relative, min_scale, batch_axis)


class _Sides(NamedTuple):
    """The axes of a leaf that each of two factors has: together all, and both those of a stack."""

    left: tuple[int, ...]
    right: tuple[int, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class _LowRank(Written, Noise):
    """See `low_rank`."""

    made_by = "noise.low_rank"
    has_factors = True

    rank: int
    relative: bool
    min_scale: float
    batch_axis: Axes = ()

    def __post_init__(self) -> None:
        settle(self, rank=check_size("rank", self.rank))
        check_scale(self)
        if not callable(self.batch_axis):
            settle(self, batch_axis=check_axes("batch_axis", self.batch_axis))

    def normals(self, leaf: Any) -> tuple[tuple[int, ...], ...]:
        sides = self._sides(leaf)
        if sides is None:
            return (leaf.shape,)
        return tuple((*_shape(leaf, side), self.rank) for side in sides)

    def factors(self, parts: Parts, leaf: Any) -> tuple[jax.Array, jax.Array] | None:
        sides = self._sides(leaf)
        if sides is None:
            return None
        left, right = (
            part.reshape(
                *(leaf.shape[axis] if axis in side else 1 for axis in range(len(leaf.shape))),
                self.rank,
            )
            for part, side in zip(parts, sides, strict=True)
        )
        return left / math.sqrt(self.rank), right

    def _sides(self, leaf: Any) -> _Sides | None:
        """Which axes each of the factors has; None if they have as many entries as the leaf."""
        batch = self._batch(leaf) if len(leaf.shape) > 1 else ()
        own = [axis for axis in range(len(leaf.shape)) if axis not in batch]
        if len(own) < 2:
            return None
        left = tuple(axis for axis in range(len(leaf.shape)) if axis != own[-1])
        sides = _Sides(left, tuple(sorted((*batch, own[-1]))))
        numbers = sum(math.prod(_shape(leaf, side)) for side in sides)
        return sides if numbers * self.rank < math.prod(leaf.shape) else None

    def _batch(self, leaf: Any) -> tuple[int, ...]:
        """The axes along which a leaf is a stack."""
        axes = self.batch_axis
        if callable(axes):
            axes = axes(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        count = len(leaf.shape)
        batch = check_axes("batch_axis", axes)
        if not all(-count <= axis < count for axis in batch):
            raise ValueError(
                f"`batch_axis` must be axes of the leaf, got {batch} for one of shape "
                f"{leaf.shape}: pass a function of the leaf that returns () where there are none."
            )
        return tuple(axis % count for axis in batch)


def _shape(leaf: Any, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in axes)
