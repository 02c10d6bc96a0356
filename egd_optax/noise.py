"""Noise: how the members of a population differ from their parent.

>>> from egd_optax import egd, noise
>>> tx = egd(0.1, noise=noise.low_rank(rank=2))

Subclass `Noise` for another distribution. Heavy tails, for example, of a normal number divided by
the root mean square of three others:

>>> import jax, jax.numpy as jnp
>>> class StudentT(noise.Noise):
...   def normals(self, leaf):
...     return leaf.shape, (3, *leaf.shape)
...   def form(self, parts, leaf):
...     numerator, others = parts
...     return numerator / jnp.sqrt(jnp.mean(others**2, 0)) / 3**0.5
>>> tx = egd(0.1, noise=StudentT())

The library keeps its promises for it. The bits are the same in all memory modes, in batches, in
mirrored pairs, over a mesh and after a resume.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import string
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_axes, check_flag, check_size, check_static_number
from egd_optax._written import Written, settle
from egd_optax.backend import xla

__all__ = ["Noise", "Outcome", "gaussian", "low_rank"]

# Arrays of random numbers that the noise of one leaf is made of.
Parts = tuple[jax.Array, ...]
# Axes of a leaf, or a function of its shape and dtype that returns them.
Axes = int | Sequence[int] | Callable[[jax.ShapeDtypeStruct], int | Sequence[int]]


class Outcome(NamedTuple):
    """The outcome of a generation, for a noise that adapts.

    Attributes:
        fitness: of all members, `[n]`, the parent's first; +inf if not finite.
        weights: the weight of each member in the child, `[n]`.
        child_fitness: `[]`, +inf if the child was not evaluated.
        accepted: bool `[]`, whether the parameters left the parent.
        statistic: the sum of weight * `Noise.statistic(noise)` over all members but the parent, a
            pytree like the parameters; None if the noise has no statistic.

    Example:
        Sigma grows while children are taken, and shrinks otherwise.

        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> class Adaptive(noise.Noise):
        ...   def init(self, params):
        ...     return jnp.float32(1.0)
        ...   def sigma(self, sigma, state):
        ...     return sigma * state
        ...   def adapt(self, state, outcome):
        ...     return state * jnp.where(outcome.accepted, 1.1, 0.97)
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, noise=Adaptive())
        >>> params = jnp.ones(3)
        >>> _, state = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> round(float(state.strategy_state.noise), 2)
        1.1
    """

    fitness: jax.Array
    weights: jax.Array
    child_fitness: jax.Array
    accepted: jax.Array
    statistic: optax.Params | None


class Noise:
    """The noise of one leaf is `std * form(numbers)`; subclass it for another noise.

    The library draws the numbers, and rounds the noise so that every device gets the same bits. It
    replaces noise that is not finite by zero. Every method has a default. `normals` asks for one
    normal number for each parameter, and `form` returns it. `std` is `sigma` times the root mean
    square of the leaf.

    Decorate a subclass that has settings with `@dataclasses.dataclass(frozen=True)`, so that it is
    compared and hashed by value. Give it no `__call__`: `optax.inject_hyperparams` would take it
    for a schedule.

    Attributes:
        relative: whether `sigma` is a fraction of the root mean square of a leaf. If False, it is
            in units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters. With it leaves
            initialised to zero move.
        has_factors: whether `factors` returns any. Members can then be evaluated without being
            formed.

    Example:
        Noise that is the same for all columns of a matrix, a number for each row.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> class WholeRows(noise.Noise):
        ...   def normals(self, leaf):
        ...     return (leaf.shape[:1],)
        ...   def form(self, parts, leaf):
        ...     return jnp.broadcast_to(parts[0].reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)
        >>> tx = evolve(optax.sgd(0.0), evolve_every=1, noise=WholeRows())
        >>> params = jnp.ones((3, 4))
        >>> updates, _ = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> bool((updates == updates[:, :1]).all())
        True
    """

    relative: bool = True
    min_scale: float = 1e-3
    has_factors: bool = False

    def init(self, params: optax.Params) -> Any:
        """Returns the state of the noise at the start of a run; by default none.

        Args:
            params: the parameters, with `optax.MaskedNode` for leaves that do not mutate.
        """
        del params
        return ()

    def sigma(self, sigma: jax.Array, state: Any) -> jax.Array:
        """Returns the sigma of a generation, `[]`, from the one that `evolve` was given."""
        del state
        return sigma

    def reads(self, base_state: optax.OptState, state: Any) -> optax.Params | None:
        """Returns arrays that `std` reads, one for each leaf of the parameters; None for nothing.

        Args:
            base_state: the state of the base optimizer after the step.
            state: of the noise.
        """
        del base_state, state
        return None

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        """Returns the standard deviation of the noise of a leaf, `[]`, or of each of its entries.

        Args:
            leaf: a leaf of the parent.
            sigma: `[]`, of a real dtype that the leaf is computed in.
            read: the same leaf of `reads`, or None.
        """
        del read
        if not self.relative:
            return sigma
        squares = jnp.square(jnp.abs(leaf).astype(sigma.dtype))
        return sigma * jnp.maximum(
            jnp.sqrt(jnp.mean(squares)), jnp.asarray(self.min_scale, sigma.dtype)
        )

    def normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the standard normal numbers that the noise of a leaf is made of.

        Noise that is made of fewer numbers than its leaf has entries is never held: members and
        sums are formed from the numbers.

        Args:
            leaf: shape and dtype of the leaf; a complex leaf comes as a real one, twice.
        """
        return (leaf.shape,)

    def draw(self, key: jax.Array, leaf: jax.Array) -> Parts:
        """Draws numbers of another distribution, in place of `normals`; the parts of `form`.

        The library calls it if a subclass defines it. It compiles once for each leaf.

        Args:
            key: threefry key of this cycle, member and leaf, for `jax.random`.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        raise NotImplementedError

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        """Returns noise of unit variance, of the shape of the leaf.

        By default the product of the `factors`, or the first of the parts.

        Args:
            parts: arrays of the shapes of `normals`, float32 or wider; or what `draw` returned.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        factors = self.factors(parts, leaf)
        return parts[0] if factors is None else product(*factors, leaf)

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        """Returns the sum of weight * `form` over some members.

        By default one product of the `factors` of all. Without factors it depends on the memory
        that the noise takes. If it takes at most as much as its numbers, members are summed
        together, else one after the other.

        Args:
            parts: of each of them, with a leading axis `[n]`.
            weights: `[n]`, of the dtype of the sum.
            leaf: the leaf of the parent; for its shape and dtype.
        """
        factors = jax.vmap(lambda parts: self.factors(parts, leaf))(parts)
        if factors is not None:
            return sum_of_products(*factors, weights, leaf)

        def form(parts: Parts) -> jax.Array:
            formed = self.form(parts, leaf).astype(weights.dtype)
            # Else an entry that is infinite in one member would be lost for all of them.
            return jnp.where(jnp.isfinite(formed), formed, jnp.zeros_like(formed))

        if sum(part.size for part in parts) >= weights.size * leaf.size:
            formed = jax.vmap(form)(parts)  # no more than the numbers that are held
            return jnp.tensordot(weights, formed, axes=1, precision=lax.Precision.HIGHEST)

        def term(index: jax.typing.ArrayLike) -> jax.Array:
            noise = form(tuple(part[index] for part in parts))
            return xla.round_for_fma(weights[index] * noise)

        return xla.loop(1, weights.size, lambda index, total: total + term(index), term(0))

    def factors(self, parts: Parts, leaf: Any) -> tuple[jax.Array, jax.Array] | None:
        """Returns two arrays; the noise is the sum of their products over the last axis.

        Members of noise that has factors can be evaluated without being formed. If they are
        formed, the factors are rounded to half of their digits, so that each product is exact.

        Args:
            parts: as those of `form`.
            leaf: shape and dtype of the leaf.

        Returns:
            Two arrays with the axes of the leaf and a last axis `[rank]`. Each axis is as long as
            that of the leaf, or one. None if the noise of this leaf has no factors.
        """
        del parts, leaf
        return None

    statistic: Callable[[jax.Array], jax.Array] | None = None
    """Maps noise of unit variance to an array like it, which is summed as the noise is."""

    def adapt(self, state: Any, outcome: Outcome) -> Any:
        """Returns the next state, after a generation."""
        del outcome
        return state


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


@dataclasses.dataclass(frozen=True, repr=False)
class _Gaussian(Written, Noise):
    """See `gaussian`."""

    made_by = "noise.gaussian"

    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        _check_scale(self)


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
        _check_scale(self)
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


def _check_scale(noise: Noise) -> None:
    check_flag("relative", noise.relative)
    settle(noise, min_scale=check_static_number("min_scale", noise.min_scale, zero=True))


def has_factors(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be evaluated as the parent's leaf and two factors."""
    # A sum of products of floats of a few digits differs from the float that it rounds to.
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return False
    if not noise.has_factors:
        return False
    parts = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in noise.normals(leaf))
    return jax.eval_shape(lambda *parts: noise.factors(parts, leaf), *parts) is not None


def product(left: jax.Array, right: jax.Array, leaf: jax.Array) -> jax.Array:
    """The sum of products over the last axis of two factors, of the shape of a leaf."""
    sharding = jax.typeof(leaf).sharding  # from the start: no device holds the whole product
    axes = range(leaf.ndim)
    if left.shape[-1] == 1:
        # A product of entries, no matrix product: XLA:CPU forms it within what uses the member.
        sides = (
            lax.broadcast_in_dim(factor[..., 0], leaf.shape, axes, out_sharding=sharding)
            for factor in (left, right)
        )
        return next(sides) * next(sides)
    names, operands = [], []
    for factor in (left, right):
        own = [axis for axis in axes if factor.shape[axis] == leaf.shape[axis]]
        operands.append(lax.squeeze(factor, [axis for axis in axes if axis not in own]))
        names.append("".join(string.ascii_uppercase[axis] for axis in own))
    whole = "".join(string.ascii_uppercase[axis] for axis in axes)
    return jnp.einsum(
        f"{names[0]}r,{names[1]}r->{whole}",
        *operands,
        precision=lax.Precision.HIGHEST,
        out_sharding=sharding,
    )


def sum_of_products(
    left: jax.Array, right: jax.Array, weights: jax.Array, leaf: jax.Array
) -> jax.Array:
    """The sum of weight * `product` over members: one product over all.

    Args:
        left: of each of them, `[n, ..., rank]`.
        right: the same of the other factor.
        weights: `[n]`, of the dtype of the sum.
        leaf: for the shape.
    """
    left = jnp.expand_dims(weights, range(1, left.ndim)) * left.astype(weights.dtype)

    def of_all(factor: jax.Array) -> jax.Array:
        factor = jnp.moveaxis(factor.astype(weights.dtype), 0, -2)
        return factor.reshape(*factor.shape[:-2], -1)

    return product(of_all(left), of_all(right), leaf)
