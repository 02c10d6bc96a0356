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

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._checks import check_flag, check_size, check_static_number
from egd_optax._written import Written, settle

# What the noise of one leaf is made of; a pytree of arrays.
Parts = Any


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


def low_rank(rank: int = 1, relative: bool = True, min_scale: float = 1e-3) -> Noise:
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

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `rank` is below 1, or `min_scale` negative or not finite.

    Cost:
        `rank * (rows + columns)` normal numbers for every matrix and member. No member is
        stored, in any memory mode: what recombines is drawn again, into the sum.

    References:
        Sarkar et al., `Evolution Strategies at the Hyperscale
        <https://arxiv.org/abs/2511.16652>`_, 2025.

    Example:
        >>> from egd_optax import egd, noise
        >>> noise.low_rank(rank=2)
        noise.low_rank(rank=2, relative=True, min_scale=0.001)
        >>> tx = egd(0.1, noise=noise.low_rank())
    """
    return _LowRank(rank, relative, min_scale)


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


@dataclasses.dataclass(frozen=True, repr=False)
class _LowRank(Written, Noise):
    """See `low_rank`."""

    made_by = "noise.low_rank"
    redraw = True
    linear = True
    rounded = True  # a product of two numbers with half of the digits is exact
    finite = True
    divisible = True

    rank: int
    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        settle(self, rank=check_size("rank", self.rank))
        _check_scale(self)

    def draw(self, key: jax.Array, std: jax.Array, leaf: jax.Array) -> Parts:
        if not self._splits(leaf):
            return std * _normal(key, leaf.shape, std, leaf, out_sharding=jax.typeof(leaf).sharding)
        rows, columns = _sides(leaf)
        factors = _normal(key, (rows + columns, self.rank), std, leaf) / self.rank**0.25
        left = (std * factors[:rows]).reshape(*leaf.shape[:-1], self.rank)
        return left, factors[rows:]

    def _normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[Normal, ...] | None:
        if _is_complex(leaf):
            return None
        if not self._splits(leaf):
            return (Normal(leaf.shape),)
        rows, columns = _sides(leaf)
        divisor = self.rank**0.25
        left = Normal((*leaf.shape[:-1], self.rank), whole=False, divisor=divisor)
        start = rows * self.rank
        return left, Normal((columns, self.rank), start, whole=False, scaled=False, divisor=divisor)

    def _view(self, leaf: Any) -> tuple[int, ...]:
        return _sides(leaf) if self._splits(leaf) else (leaf.size,)

    def _splits(self, leaf: Any) -> bool:
        """Whether the factors have fewer entries than the leaf."""
        rows, columns = _sides(leaf)
        return (rows + columns) * self.rank < rows * columns

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        if not isinstance(parts, tuple):
            return super().form(parts, leaf)
        left, right = parts
        if self.rank > 1:
            return _product("...r,cr->...c", left, right, leaf)
        # A product of entries, no matrix product: XLA:CPU forms it within what uses the member.
        sharding = jax.typeof(leaf).sharding
        *rows, column = range(leaf.ndim)
        return lax.broadcast_in_dim(
            left[..., 0], leaf.shape, rows, out_sharding=sharding
        ) * lax.broadcast_in_dim(right[:, 0], leaf.shape, [column], out_sharding=sharding)

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        if not isinstance(parts, tuple):
            return jnp.tensordot(weights, parts, axes=1, precision=lax.Precision.HIGHEST)
        left, right = parts
        left = jnp.expand_dims(weights, range(1, left.ndim)) * left
        return _product("n...r,ncr->...c", left, right, leaf)  # one over all members


def _sides(leaf: Any) -> tuple[int, int]:
    """How many rows and columns a leaf has as a matrix."""
    return math.prod(leaf.shape[:-1]), math.prod(leaf.shape[-1:])


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


def _product(axes: str, left: jax.Array, right: jax.Array, leaf: jax.Array) -> jax.Array:
    # Sharded like the leaf from the start: no device holds all of it.
    return jnp.einsum(
        axes,
        left,
        right,
        precision=lax.Precision.HIGHEST,
        out_sharding=jax.typeof(leaf).sharding,
    )
