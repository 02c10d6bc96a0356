"""Noise: what sets the members of a population apart from their parent.

>>> from egd_optax import egd, noise
>>> tx = egd(0.1, noise=noise.low_rank(rank=2))

A noise of one's own is a subclass of `Noise` with a `draw`. Heavy tails, for example:

>>> import jax, jax.numpy as jnp
>>> class StudentT(noise.Noise):
...   def draw(self, key, std, leaf):
...     return std * jax.random.t(key, 3.0, leaf.shape) / 3**0.5
>>> tx = egd(0.1, noise=StudentT())

It keeps every promise of the library without knowing of it: the same bits in all memory modes,
in batches, in mirrored pairs, over a mesh and after a resume.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import string
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._checks import check_axes, check_flag, check_size, check_static_number
from egd_optax._written import Written, settle

__all__ = ["Noise", "gaussian", "low_rank"]

# What the noise of one leaf is made of; a pytree of arrays.
Parts = Any
# Axes of a leaf, or what tells them of its shape and dtype.
Axes = int | Sequence[int] | Callable[[jax.ShapeDtypeStruct], int | Sequence[int]]


class Normal(NamedTuple):
    """Standard normal numbers that a part of the noise of a leaf is made of.

    Attributes:
        shape: of the part.
        start: which of the numbers that the key of the leaf draws is the first.
        whole: whether they are the noise itself, to be added; else they are to be multiplied.
        scaled: whether they are multiplied with the standard deviation.
        divisor: what they are divided by.
    """

    shape: tuple[int, ...]
    start: int = 0
    whole: bool = True
    scaled: bool = True
    divisor: float = 1.0


class Noise:
    """What the noise of members is, leaf by leaf; subclass it for a noise of one's own.

    Only `draw` is needed. Give a subclass that has settings `@dataclasses.dataclass(frozen=True)`,
    so that it is compared and hashed by value, and no `__call__`, which `optax.inject_hyperparams`
    would take for a schedule.

    The library rounds, so that a member is the same to the bit wherever XLA forms it: noise that
    is drawn as a whole, and noise that `form` returns, to one digit less than its dtype has;
    parts of which it is still to be formed to half of their digits. Noise that is not finite is
    zero.

    Attributes:
        relative: whether `sigma` is a fraction of the root mean square of a leaf, else in units
            of the parameters. `draw` gets the product, `std`, and need not know.
        min_scale: floor of that root mean square, in units of the parameters, so that leaves
            initialised to zero move.
        redraw: whether parts are so small and so cheap to draw that a member is better drawn
            again than stored. Members are then carried as their parts, and summed by
            `form_sum`, as many at a time as take a quarter of the memory of the parameters.
        linear: promise that what `form` returns is linear in the first array of the parts, so
            that a mirrored member needs no more than its sign turned.
        rounded: promise that `form` returns the same bits wherever XLA computes it.
        finite: promise that no noise is NaN or infinite as long as `std` is finite.
        divisible: promise that a leaf of which a side but the last is split in two, in row-major
            order, is drawn the same numbers, so that devices along `population_axis` can each
            sum a part of it.

    Example:
        Noise that is the same for all columns of a matrix, a number for each row.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> class WholeRows(noise.Noise):
        ...   redraw = True
        ...   def draw(self, key, std, leaf):
        ...     return std * jax.random.normal(key, leaf.shape[:1])
        ...   def form(self, rows, leaf):
        ...     return jnp.broadcast_to(rows.reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)
        >>> tx = evolve(optax.sgd(0.0), evolve_every=1, noise=WholeRows())
        >>> params = jnp.ones((3, 4))
        >>> updates, _ = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> bool((updates == updates[:, :1]).all())
        True
    """

    relative: bool = True
    min_scale: float = 1e-3
    redraw: bool = False
    linear: bool = False
    rounded: bool = False
    finite: bool = False
    divisible: bool = False

    def draw(self, key: jax.Array, std: jax.Array, leaf: jax.Array) -> Parts:
        """Draws what the noise of one member in one leaf is made of.

        Args:
            key: threefry key of this cycle, member and leaf, for `jax.random`.
            std: standard deviation of the noise, in units of the parameters, `[]`, float32 or
                wider.
            leaf: the leaf of the parent; for its shape and dtype.

        Returns:
            A pytree of arrays: the noise itself, of the shape of the leaf, or what `form` makes
            it of. Drawn in float32 whatever the leaf's precision.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `draw`.")

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        """The noise that is made of these parts, of the shape of the leaf, in float32 or wider.

        Args:
            parts: what `draw` returned.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        del leaf
        noise: jax.Array = parts
        return noise

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array | None:
        """The sum of weight * noise over some members, in their order; asked for with `redraw`.

        Args:
            parts: what `draw` returned for each of them, with a leading axis `[n]`.
            weights: `[n]`, of the dtype of the sum.
            leaf: the leaf of the parent; for its shape and dtype.

        Returns:
            The sum, of the shape of the leaf; or None, as by default: the library adds up what
            `form` returns.
        """
        del parts, weights, leaf
        return None

    def _normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[Normal, ...] | None:
        """The normal numbers that `draw` draws, a part each; None where it draws others."""
        del leaf
        return None

    def _view(self, leaf: Any) -> tuple[int, ...]:
        """A shape of fewer axes in which a leaf is drawn the same noise."""
        shape: tuple[int, ...] = leaf.shape
        return shape

    _low_rank = False

    def _has_factors(self, leaf: Any) -> bool:
        """Whether the noise of a leaf is a sum of products, of what `_factors` returns."""
        del leaf
        return False

    def _factors(self, parts: Parts, leaf: Any) -> tuple[jax.Array, jax.Array]:
        """Two arrays of which the noise is the sum of products over their last axis.

        With the axes of the leaf before it, each its side or one.
        """
        raise NotImplementedError


def gaussian(relative: bool = True, min_scale: float = 1e-3) -> Noise:
    """An independent normal number for every parameter.

    Args:
        relative: whether `sigma` is a fraction of the root mean square of each leaf; False: in
            units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters, so that leaves
            initialised to zero move.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `min_scale` is negative or not finite.

    Cost:
        A normal number for every parameter and member.

    References:
        Rechenberg, `Evolutionsstrategie`, 1973; with draws that are repeated from their keys:
        Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> from egd_optax import egd, noise
        >>> noise.gaussian(relative=False)
        noise.gaussian(relative=False, min_scale=0.001)
        >>> tx = egd(0.1, sigma=0.5, noise=noise.gaussian(relative=False))
    """
    return _Gaussian(relative, min_scale)


def low_rank(
    rank: int = 1, relative: bool = True, min_scale: float = 1e-3, batch_axis: Axes = ()
) -> Noise:
    """Noise A B^T / sqrt(rank) for leaves of two axes or more, far cheaper to draw.

    A has a row for every index of all axes but the last (of a kernel: height, width and input
    channels; of an embedding: the vocabulary), B one for every index of the last; their entries
    are independent normal numbers. The standard deviation of every entry is that of `gaussian`.
    Vectors and scalars are drawn in full, and so are leaves for which A and B would have as many
    entries as the leaf.

    Args:
        rank: columns of A and B; higher is closer to normal noise and dearer.
        relative: whether `sigma` is a fraction of the root mean square of each leaf; False: in
            units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters.
        batch_axis: axes along which a leaf is a stack of matrices, as in `jax.nn.initializers`:
            an axis or a sequence of axes for every leaf of two axes or more, or a function from a
            leaf's `jax.ShapeDtypeStruct` to such. Each matrix gets factors of its own. Without it
            the layers of a leaf `[layers, inputs, outputs]` of `jax.lax.scan` share B, so that
            no layer moves independently of the others. What is left with fewer than two axes,
            as biases `[layers, width]`, is drawn in full.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `rank` is below 1, `min_scale` negative or not finite, or, when a step is
            traced, a leaf has no such `batch_axis`.

    Cost:
        `rank * (rows + columns)` normal numbers for every matrix and member, with `batch_axis`
        for every matrix of a stack. No member is stored, in any memory mode: what recombines is
        drawn again, into the sum. Along a `population_axis` each device sums all of a leaf that
        has a `batch_axis`.

    References:
        Sarkar et al., `Evolution Strategies at the Hyperscale
        <https://arxiv.org/abs/2511.16652>`_, 2025.

    Example:
        >>> from egd_optax import egd, noise
        >>> noise.low_rank(rank=2)
        noise.low_rank(rank=2, relative=True, min_scale=0.001, batch_axis=())
        >>> tx = egd(0.1, noise=noise.low_rank())

        A network of twelve layers under one `jax.lax.scan`, and an embedding beside it:

        >>> layers = lambda leaf: 0 if leaf.shape[0] == 12 else ()
        >>> tx = egd(0.1, noise=noise.low_rank(batch_axis=layers))
    """
    return _LowRank(rank, relative, min_scale, batch_axis)


@dataclasses.dataclass(frozen=True, repr=False)
class _Gaussian(Written, Noise):
    """See `gaussian`."""

    made_by = "noise.gaussian"
    linear = True
    rounded = True  # by the library, when it is drawn
    finite = True
    divisible = True

    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        _check_scale(self)

    def draw(self, key: jax.Array, std: jax.Array, leaf: jax.Array) -> jax.Array:
        # In the sharding of the leaf: no device holds all of the noise.
        return std * _normal(key, leaf.shape, std, leaf, out_sharding=jax.typeof(leaf).sharding)

    def _normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[Normal, ...] | None:
        return None if _is_complex(leaf) else (Normal(leaf.shape),)

    def _view(self, leaf: Any) -> tuple[int, ...]:
        return (leaf.size,)


class _Sides(NamedTuple):
    """The axes of a leaf that each of two factors has: together all, and both those of a stack."""

    left: tuple[int, ...]
    right: tuple[int, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class _LowRank(Written, Noise):
    """See `low_rank`."""

    made_by = "noise.low_rank"
    _low_rank = True
    redraw = True
    linear = True
    rounded = True  # a product of two numbers with half of the digits is exact
    finite = True

    rank: int
    relative: bool
    min_scale: float
    batch_axis: Axes = ()

    def __post_init__(self) -> None:
        settle(self, rank=check_size("rank", self.rank))
        _check_scale(self)
        if not callable(self.batch_axis):
            settle(self, batch_axis=check_axes("batch_axis", self.batch_axis))

    @property
    def divisible(self) -> bool:  # type: ignore[override]
        # A side that is split in two would be another axis than `batch_axis` names.
        return self.batch_axis == ()

    def draw(self, key: jax.Array, std: jax.Array, leaf: jax.Array) -> Parts:
        sides = self._sides(leaf)
        if sides is None:
            return std * _normal(key, leaf.shape, std, leaf, out_sharding=jax.typeof(leaf).sharding)
        left, right = (_shape(leaf, side) for side in sides)
        rows, columns = math.prod(left), math.prod(right)
        factors = _normal(key, (rows + columns, self.rank), std, leaf) / self.rank**0.25
        return (
            (std * factors[:rows]).reshape(*left, self.rank),
            factors[rows:].reshape(*right, self.rank),
        )

    def _normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[Normal, ...] | None:
        if _is_complex(leaf):
            return None
        sides = self._sides(leaf)
        if sides is None:
            return (Normal(leaf.shape),)
        left, right = ((*_shape(leaf, side), self.rank) for side in sides)
        divisor = self.rank**0.25
        start = math.prod(left)
        return (
            Normal(left, whole=False, divisor=divisor),
            Normal(right, start, whole=False, scaled=False, divisor=divisor),
        )

    def _view(self, leaf: Any) -> tuple[int, ...]:
        if self.batch_axis != ():
            return super()._view(leaf)
        if self._sides(leaf) is None:
            return (leaf.size,)
        return math.prod(leaf.shape[:-1]), leaf.shape[-1]

    def _sides(self, leaf: Any) -> _Sides | None:
        """Which axes each of the factors has; None where they have as many entries as the leaf."""
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

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        sides = self._sides(leaf)
        if sides is None:
            return super().form(parts, leaf)
        left, right = parts
        if self.rank > 1:
            return _product("{left}r,{right}r->{whole}", sides, left, right, leaf)
        # A product of entries, no matrix product: XLA:CPU forms it within what uses the member.
        sharding = jax.typeof(leaf).sharding
        return lax.broadcast_in_dim(
            left[..., 0], leaf.shape, sides.left, out_sharding=sharding
        ) * lax.broadcast_in_dim(right[..., 0], leaf.shape, sides.right, out_sharding=sharding)

    def _has_factors(self, leaf: Any) -> bool:
        return self._sides(leaf) is not None

    def _factors(self, parts: Parts, leaf: Any) -> tuple[jax.Array, jax.Array]:
        sides = self._sides(leaf)
        assert sides is not None  # narrows the type: asked only where there are factors
        left, right = (
            part.reshape(
                *(leaf.shape[axis] if axis in own else 1 for axis in range(len(leaf.shape))),
                self.rank,
            )
            for part, own in zip(parts, sides, strict=True)
        )
        return left, right

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        sides = self._sides(leaf)
        if sides is None:
            return jnp.tensordot(weights, parts, axes=1, precision=lax.Precision.HIGHEST)
        left, right = parts
        left = jnp.expand_dims(weights, range(1, left.ndim)) * left
        # One product over all members.
        return _product("n{left}r,n{right}r->{whole}", sides, left, right, leaf)


def _shape(leaf: Any, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in axes)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def _check_scale(noise: Noise) -> None:
    check_flag("relative", noise.relative)
    settle(noise, min_scale=check_static_number("min_scale", noise.min_scale, zero=True))


def _normal(
    key: jax.Array, shape: tuple[int, ...], std: jax.Array, leaf: jax.Array, **sharding: Any
) -> jax.Array:
    """Normal numbers drawn in float32 or complex64 whatever the leaf's precision, to scale."""
    dtype = jnp.complex64 if _is_complex(leaf) else jnp.float32
    drawn = jax.random.normal(key, shape, dtype, **sharding)
    return drawn.astype(jnp.promote_types(drawn.dtype, std.dtype))


def _product(
    axes: str, sides: _Sides, left: jax.Array, right: jax.Array, leaf: jax.Array
) -> jax.Array:
    """The matrix products of two factors, for every matrix of a stack."""

    def named(axes: Sequence[int]) -> str:
        return "".join(string.ascii_uppercase[axis] for axis in axes)

    # Sharded like the leaf from the start: no device holds all of it.
    return jnp.einsum(
        axes.format(
            left=named(sides.left), right=named(sides.right), whole=named(range(leaf.ndim))
        ),
        left,
        right,
        precision=lax.Precision.HIGHEST,
        out_sharding=jax.typeof(leaf).sharding,
    )
