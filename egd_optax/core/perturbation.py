"""The noise of one draw in each block: its numbers, formed and scaled.

A noise says which numbers it needs, how to form noise of unit variance of them, and how large it
is. The numbers of most blocks come as rows of one draw; a large leaf is drawn when it is used.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, fixed_point, packing, random, xla
from egd_optax.backend.packing import Arrays, Layout
from egd_optax.backend.products import part_of, product, sum_of_products
from egd_optax.core.deviation import stds_of
from egd_optax.noise.interface import Noise, checked_form, has_factors

# Purpose of the keys of a noise that draws its numbers itself; of a complex leaf also the next one.
_OTHER_DRAWS = 2
# Purposes of the keys that integers are rounded by: those of a member, and those of a child.
_OF_MEMBERS, _OF_CHILD = 4, 5


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["leaves", "stds", "keys"],
    meta_fields=["layout", "noise"],
)
@dataclasses.dataclass(frozen=True)
class Perturbation:
    """The noise of a generation, none of it drawn yet.

    Attributes:
        leaves: the parameters, in blocks; for their shapes, dtypes and shardings.
        stds: the standard deviations of the noise in each block, `[many, 1, ...]` or like it.
        keys: the keys of the leaves, uint32 `[leaves, 2]`.
        layout: how leaves are laid out in blocks.
        noise: the distribution of the perturbations.
    """

    leaves: Arrays
    stds: Arrays
    keys: jax.Array
    layout: Layout
    noise: Noise

    def draw_rows(self, draw: jax.Array) -> jax.Array:
        """The numbers of all blocks in rows."""
        return draw_rows(self.layout, self.keys, draw)

    def read(self, at: int, rows: jax.Array, sign: jax.Array) -> jax.Array:
        """Sign times the noise in one block in rows, from the numbers of a draw."""
        if not self.has_factors(at):
            return self._scaled(at, self._form(at, self.layout.blocks[at].read(rows)), sign)
        left, right = self.factors(at, rows, sign)
        whole: jax.Array = _mapped(product, self.leaves[at], (0, 0, 0))(
            left, right, self.leaves[at]
        )
        return whole if left.shape[-1] == 1 else xla.round_for_fma(whole)

    def has_factors(self, at: int) -> bool:
        """Whether the noise in a block is that of its factors."""
        block = self.layout.blocks[at]
        return (
            block.rows is not None
            and self.stds[at].size == block.many
            and has_factors(self.noise, block.like)
        )

    def only(self, at: int) -> "Perturbation":
        """The same noise of one block in rows."""
        layout = self.layout.only(at)
        return Perturbation((self.leaves[at],), (self.stds[at],), self.keys, layout, self.noise)

    def factors(
        self, at: int, rows: jax.Array, sign: jax.typing.ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        """The factors of sign times the noise in one block, `[many, ..., rank]` each.

        They are rounded to half of their digits, so that their products are exact. They are scaled
        first, for otherwise each entry of the noise would have to be rounded.
        """
        fn: Any = _mapped(self.noise.factors, self.leaves[at], (0, 0))
        left, right = fn(self.layout.blocks[at].read(rows), self.leaves[at])
        scale = jnp.asarray(sign, left.dtype) * self.stds[at].reshape(-1, *(1,) * (left.ndim - 1))
        return xla.round_for_exact_product(scale * left), xla.round_for_exact_product(right)

    def drawn(self, at: int, draw: jax.Array) -> jax.Array:
        """The noise in one other block."""
        return self._scaled(at, self._form(at, self._numbers(at, draw)))

    def dithered(self, at: int, draw: jax.Array) -> jax.Array:
        """The noise in one block of integers; to round it to the nearest is to round at random."""
        return self.drawn(at, draw) + (self._uniforms(at, _OF_MEMBERS, draw) - 0.5)

    def uniforms_of_child(self, at: int) -> jax.Array:
        """Numbers from 0 to 1 by which the fractions of a child are rounded, in one block."""
        return self._uniforms(at, _OF_CHILD, jnp.int32(0))

    def bounds(self, at: int) -> tuple[int, int]:
        """The least and the greatest value in one block of integers."""
        bounds = self.noise.bounds(self.layout.blocks[at].like)
        assert bounds is not None  # narrows the type: else no integers mutate
        return bounds

    def _uniforms(self, at: int, purpose: int, draw: jax.Array) -> jax.Array:
        leaf = self.leaves[at][0]
        key = random.derive(self.keys[self.layout.blocks[at].leaves[0]], purpose, 0)
        # XLA would else compute the numbers of the entries outside of all loops, and hold them.
        draw, key = xla.no_hoist(draw, key)
        sharding = jax.typeof(leaf).sharding
        return random.numbers_of(random.uniforms, key, draw, 0, leaf.shape, sharding)[None]

    def units(self, draw: jax.Array) -> list[jax.Array]:
        """The noise of a draw, of unit variance, in each block; zero if it is not finite."""
        return list(map(_finite, self.raw_units(draw)))

    def raw_units(self, draw: jax.Array) -> list[jax.Array]:
        """The same as the noise forms it."""
        rows, units = self.draw_rows(draw), []
        for at, block in enumerate(self.layout.blocks):
            numbers = self._numbers(at, draw) if block.rows is None else block.read(rows)
            units.append(self._form(at, numbers))
        return units

    def weighted_sum(
        self,
        at: int,
        rows: jax.Array,
        weights: jax.Array,
        *,
        added: bool = False,
        part: jax.typing.ArrayLike = 0,
        parts: int = 1,
    ) -> jax.Array:
        """The sum of weight * noise over draws, in one block in rows.

        Args:
            at: the block.
            rows: the numbers of each draw, `[draws, rows, LENGTH]`.
            weights: `[draws]`.
            added: whether the sum is added to those over other draws.
            part: the number of a part of its layers.
            parts: how many of them there are; only a block that has layers has several.
        """
        if self.has_factors(at):
            both = jax.vmap(lambda rows: self.factors(at, rows, 1))(rows)
            left, right = (part_of(factor, part, parts, axis=2) for factor in both)
            leaf = part_of(self.leaves[at], 0, parts, axis=1)
            own = weights.astype(arithmetic.sum_dtype(leaf.dtype))
            summed = functools.partial(sum_of_products, added=added)
            total: jax.Array = _mapped(summed, leaf, (1, 1, None, 0))(left, right, own, leaf)
            return total

        def form_sum(parts: Arrays, leaf: jax.Array) -> jax.Array:
            own = weights.astype(arithmetic.sum_dtype(leaf.dtype))
            if own.size == 1:  # XLA adds a product where it is used, but holds a sum of products
                return own[0] * self.noise.form(tuple(part[0] for part in parts), leaf)
            return self.noise.form_sum(parts, own, leaf)

        numbers = jax.vmap(self.layout.blocks[at].read)(rows)
        return self._scaled(at, self._over_reals(at, numbers, form_sum, 1))

    def _numbers(self, at: int, draw: jax.Array) -> Arrays:
        """The numbers of a block that is not in rows, with a leading axis of its one leaf."""
        parts = self._draws(at, draw) if draws_itself(self.noise) else self._normals(at, draw)
        return tuple(part[None] for part in parts)

    def _normals(self, at: int, draw: jax.Array) -> Arrays:
        """The normal numbers of the leaf of a block that is not in rows."""
        block, leaf = self.layout.blocks[at], self.leaves[at][0]
        parts, start = [], 0
        for shape in block.parts or self.noise.normals(real_like(leaf)):
            # In the sharding of the leaf: no device holds all of its numbers.
            sharding = jax.typeof(leaf).sharding if shape == leaf.shape else None
            key = self.keys[block.leaves[0]]
            parts.append(random.normals_of(key, draw, start, shape, sharding))
            start += math.prod(shape)
        return tuple(parts)

    def _draws(self, at: int, draw: jax.Array) -> Arrays:
        """The numbers that the noise draws itself; of a complex leaf two draws."""
        block, leaf = self.layout.blocks[at], self.leaves[at][0]
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        parts: list[jax.Array] = []
        for side in range(1 + is_complex):
            key = random.derive(self.keys[block.leaves[0]], _OTHER_DRAWS + side, draw)
            key = jax.random.wrap_key_data(key, impl="threefry2x32")
            drawn = self.noise.draw(key, leaf.real if is_complex else leaf)
            parts.extend(map(jnp.asarray, jax.tree.leaves(drawn)))
        return tuple(parts)

    def _form(self, at: int, parts: Arrays) -> jax.Array:
        """Noise of unit variance in one block, `[many, *shape]`."""
        return self._over_reals(at, parts, self.noise.form, 0)

    def _scaled(self, at: int, unit: jax.Array, sign: jax.Array | None = None) -> jax.Array:
        """Noise from noise of unit variance, rounded: XLA adds the same numbers everywhere."""
        std = self.stds[at] if sign is None else sign.astype(self.stds[at].dtype) * self.stds[at]
        noise = std * unit
        return xla.round_for_fma(noise if is_of_library(self.noise) else _finite(noise))

    def _over_reals(
        self, at: int, parts: Arrays, fn: Callable[[Arrays, jax.Array], jax.Array], axis: int
    ) -> jax.Array:
        """Maps `fn` over the leaves of a block; of complex ones over real and imaginary parts."""
        leaves = self.leaves[at]
        mapped = _mapped(fn, leaves, (axis, 0))
        if not jnp.issubdtype(leaves.dtype, jnp.complexfloating):
            return checked_form(self.noise, mapped(parts, leaves), leaves)
        half = len(parts) // 2
        real, imaginary = (mapped(p, leaves.real) for p in (parts[:half], parts[half:]))
        sides = (checked_form(self.noise, side, leaves.real) for side in (real, imaginary))
        return lax.complex(*sides) / math.sqrt(2)


def draw_rows(layout: Layout, keys: jax.Array, draw: jax.Array) -> jax.Array:
    """The numbers of all blocks in rows, float32 `[rows, LENGTH]`.

    Factors have half of their digits, all others a digit less, see `xla`. The end of the last
    row of a part has no use.
    """
    (keys, starts), draw = xla.no_hoist((keys, jnp.asarray(layout.row_start)), draw)
    entries = starts[:, None] + jnp.arange(packing.LENGTH, dtype=jnp.uint32)
    numbers = random.normals(keys[layout.row_leaf][:, None], draw, entries)
    factors = layout.row_of_factor[:, None]
    rounded = numbers
    if not factors.all():
        rounded = xla.round_for_fma(numbers)
    if factors.any():
        rounded = jnp.where(factors, xla.round_for_exact_product(numbers), rounded)
    return rounded


def perturbation_of(
    noise: Noise,
    layout: Layout,
    params: Arrays,
    parents: Arrays,
    read: Sequence[jax.Array] | None,
    sigma: jax.Array,
    keys: jax.Array,
) -> Perturbation:
    """Prepares the noise around some leaves; draws nothing.

    Args:
        noise: the distribution of the perturbations.
        layout: how leaves are laid out in blocks.
        params: the parameters, in blocks.
        parents: the leaves to which noise is added, in blocks.
        read: the arrays that the noise reads, leaf by leaf; None for nothing.
        sigma: `[]`.
        keys: the keys of the leaves, uint32 `[leaves, 2]`.
    """
    reads = [
        None if read is None or block.runs else layout.stack_one(at, read)
        for at, block in enumerate(layout.blocks)
    ]
    stds = (
        stds_of(noise, block, parent, sigma, own)
        for block, parent, own in zip(layout.blocks, parents, reads, strict=True)
    )
    return Perturbation(params, tuple(stds), keys, layout, noise)


def is_of_library(noise: Noise) -> bool:
    """Whether all numbers of a noise are the library's own: they are finite."""
    methods = type(noise).form, type(noise).draw, type(noise).form_sum
    return all(getattr(fn, "__module__", None) == Noise.__module__ for fn in methods)


def _finite(noise: jax.Array) -> jax.Array:
    """Noise with zeros in place of entries that are not finite."""
    return jnp.where(jnp.isfinite(noise), noise, jnp.zeros_like(noise))


def draws_itself(noise: Noise) -> bool:
    """Whether a noise draws its numbers itself."""
    return type(noise).draw is not Noise.draw


def real_like(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the real numbers that move a leaf."""
    is_integer = fixed_point.is_integer(leaf.dtype)
    dtype = jnp.float32 if is_integer else jnp.finfo(leaf.dtype).dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype)


def _mapped(fn: Callable[..., Any], stack: jax.Array, axes: tuple[int | None, ...]) -> Any:
    """`jax.vmap(fn, axes)`; under that the one leaf of a stack would lose its sharding."""
    if stack.shape[0] > 1:
        return jax.vmap(fn, axes)

    def of_one(*args: Any) -> Any:
        pairs = zip(args, axes, strict=True)
        only = [
            arg if axis is None else jax.tree.map(lambda x, at=axis: lax.squeeze(x, [at]), arg)
            for arg, axis in pairs
        ]
        return jax.tree.map(lambda x: x[None], fn(*only))

    return of_one
