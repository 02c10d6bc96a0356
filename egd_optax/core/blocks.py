"""The mutating leaves and their base updates, in blocks."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, fixed_point, packing
from egd_optax.backend.packing import Arrays, Layout
from egd_optax.core.bounds import OfLeaves
from egd_optax.core.perturbation import draws_itself, real_like
from egd_optax.noise.interface import Noise, is_entrywise


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Zeros:
    """Base updates that are zero, of a dtype; nothing is held."""

    dtype: jnp.dtype


class Blocks(NamedTuple):
    """The mutating leaves before the step, and their base updates, in blocks.

    Attributes:
        layout: how leaves are laid out in blocks.
        params: the leaves.
        updates: their base updates.
        bounds: of each block; None for blocks without any.
    """

    layout: Layout
    params: Arrays
    updates: tuple[jax.Array | Zeros, ...]
    bounds: OfLeaves

    @property
    def held_updates(self) -> Arrays:
        """The base updates, as arrays."""
        return tuple(map(held, self.updates, self.params))


def blocks_of(
    noise: Noise,
    params: Sequence[jax.Array],
    updates: Sequence[jax.Array],
    bounds: OfLeaves | None = None,
    *,
    still: bool = False,
    learning: bool = False,
) -> Blocks:
    """Lays out the mutating leaves and their base updates, which may all be zeros, in blocks.

    A leaf with bounds is a block of its own, whose leaves are held. The sum over its members is one
    of leaves, and not of noise. So is every leaf if members are `learning`.
    """
    bounds = bounds or (None,) * len(params)
    apart = frozenset(at for at, of_leaf in enumerate(bounds) if learning or of_leaf is not None)
    layout = lay_out(noise, params, updates, apart)
    own, steps = layout.stack(params), layout.stack(updates)
    of_blocks = tuple(bounds[block.leaves[0]] for block in layout.blocks)
    return Blocks(layout, own, tuple(map(_still, own, steps)) if still else steps, of_blocks)


def _still(params: jax.Array, update: jax.Array) -> jax.Array | Zeros:
    """Updates of zero; those of integers hold their fractions."""
    return update if fixed_point.is_integer(params.dtype) else Zeros(update.dtype)


def held(update: jax.Array | Zeros, like: jax.Array) -> jax.Array:
    """Base updates as an array, like the parameters."""
    return jnp.zeros_like(like, update.dtype) if isinstance(update, Zeros) else update


def parent_of(params: jax.Array, update: jax.Array | Zeros) -> jax.Array:
    """The parameters after the base updates."""
    return params if isinstance(update, Zeros) else arithmetic.add(params, update)


def lay_out(
    noise: Noise,
    params: Sequence[jax.Array],
    updates: Sequence[jax.Array],
    apart: frozenset[int] = frozenset(),
) -> Layout:
    """Decides which leaves are stacked, and which numbers are held in rows; none of those apart."""
    return packing.lay_out(
        params,
        updates,
        functools.partial(_parts_of, noise),
        functools.partial(_is_entrywise, noise),
        apart,
    )


def _parts_of(noise: Noise, leaf: jax.ShapeDtypeStruct) -> packing.Shapes | None:
    if draws_itself(noise) or fixed_point.is_integer(leaf.dtype):
        return None
    parts = tuple(noise.normals(real_like(leaf)))
    return parts * 2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else parts


def _is_entrywise(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    return not fixed_point.is_integer(leaf.dtype) and is_entrywise(noise, leaf)
