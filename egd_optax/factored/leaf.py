"""A leaf of a member that is never formed: the leaf of the parent and two factors."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax.backend.devices import cast_to_varying, varying_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """An array of value `base + sum_r left[..., r] * right[..., r]`.

    The factors are in broadcast form. They have an axis for each axis of the base, of its size or
    of size one, and a last axis for their rank. An operation that rearranges an array can then do
    the same to all three. All members have the same base, so that `jax.vmap` does not map it. A
    product with the base is one product for all members.

    Attributes:
        base: of the parent, `[...]`.
        left: one factor, `[..., r]`.
        right: the other factor, `[..., r]`.
        origins: the leaves that it was made of, by their positions among those of the parameters.
    """

    base: jax.Array
    left: jax.Array
    right: jax.Array
    origins: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.base.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the array."""
        return self.base.dtype

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self.base.ndim

    @property
    def size(self) -> int:
        """The number of its entries."""
        return self.base.size

    @property
    def rank(self) -> int:
        """The number of products that are summed."""
        return self.left.shape[-1]

    @property
    def is_small(self) -> bool:
        """Whether the array takes at most as much memory as its factors."""
        entries: int = self.left.size + self.right.size
        return self.size <= entries

    @property
    def is_spread(self) -> bool:
        """Whether it repeats along an axis that neither factor has, as a bias along samples."""
        own = self.owned(self.left) | self.owned(self.right)
        return any(side != 1 for axis, side in enumerate(self.shape) if axis not in own)

    @property
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """Both factors."""
        return self.left, self.right

    def owned(self, factor: jax.Array) -> frozenset[int]:
        """The axes along which a factor differs from entry to entry."""
        return frozenset(axis for axis in range(self.ndim) if factor.shape[axis] != 1)

    def like(self, base: jax.Array, left: jax.Array, right: jax.Array) -> "Factored":
        """Another array that is made of the same leaves."""
        return Factored(base, left, right, self.origins)

    def each(self, fn: Callable[[jax.Array], jax.Array]) -> "Factored":
        """Applies a function to the base, and for each rank to either factor.

        Args:
            fn: maps an array with these axes, any of them of size one, to another. It must
                rearrange entries, or be linear along an axis: a sum of products then stays one.
        """
        return self.like(fn(self.base), each_rank(fn, self.left), each_rank(fn, self.right))

    def varying(self) -> "Factored":
        """The same array, whose three parts are said to differ along the same manual axes.

        An operation on the base alone would else meet operands that differ along other axes.
        """
        parts = self.base, self.left, self.right
        axes = sorted(frozenset[str]().union(*map(varying_axes, parts)))
        return self.like(*(cast_to_varying(part, axes) for part in parts))

    def form(self) -> jax.Array:
        """The array itself, with all its entries for each member."""
        products = (self.left[..., at] * self.right[..., at] for at in range(self.rank))
        return self.base + functools.reduce(jnp.add, products).astype(self.dtype)


def each_rank(fn: Callable[[jax.Array], jax.Array], factor: jax.Array) -> jax.Array:
    """Maps a function of arrays with the axes of a base over the ranks of a factor."""
    if factor.shape[-1] == 1:
        return fn(factor[..., 0])[..., None]
    result: jax.Array = jax.vmap(fn, -1, -1)(factor)
    return result


def side_by_side(factors: Sequence[jax.Array]) -> jax.Array:
    """Factors of arrays with the same axes as one, whose rank is the sum of theirs."""
    shape = jnp.broadcast_shapes(*(factor.shape[:-1] for factor in factors))
    whole = [jnp.broadcast_to(factor, (*shape, factor.shape[-1])) for factor in factors]
    return jnp.concatenate(whole, -1)


def origins_of(*leaves: Factored) -> tuple[int, ...]:
    """The positions of the parameters that some leaves were made of."""
    return tuple(sorted({origin for leaf in leaves for origin in leaf.origins}))


def is_factored(value: Any) -> bool:
    """Whether a value is `Factored`; for `is_leaf`."""
    return isinstance(value, Factored)


def base_of(value: Any) -> Any:
    """The base of a `Factored`; an array itself."""
    return value.base if isinstance(value, Factored) else value


def formed(value: Any) -> Any:
    """The array that a `Factored` represents; an array itself."""
    return value.form() if isinstance(value, Factored) else value
