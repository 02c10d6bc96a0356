"""Mutate: candidates around a parent, each drawn from its number and never held together.

The noise of a leaf depends on (key, cycle, generation, draw, position of the leaf), so a member can
be drawn again at any time, on any device, in any order. Member 0 is the parent. If members are
mirrored, (1, 2), (3, 4), ... are pairs of one draw with opposite signs: Brockhoff et al., `Mirrored
Sampling and Sequential Selection for Evolution Strategies
<https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010.

A candidate is a point that an update of the base's dtype leads to from the parameters, to the bit,
so that `optax.apply_updates` leads to what was evaluated.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, packing, random, xla
from egd_optax.backend.packing import Arrays, Layout
from egd_optax.noise import Noise

# Purposes of the keys that a generation derives from its own.
_OF_LEAVES, OF_ACCEPTANCE, _OF_OTHER_DRAWS = range(3)
# Sets the noise apart from what a training loop derives from the same key.
_PURPOSE = 0x45474421


def generation_key(key: jax.Array, cycle: jax.Array, generation: jax.Array) -> jax.Array:
    """The key of a generation, uint32 `[2]`, from that of the run."""
    return random.derive(random.derive(key, _PURPOSE, cycle), 0, generation)


class Candidate(NamedTuple):
    """A member or a child, as it is held while it is evaluated.

    Attributes:
        rows: the random numbers of all blocks in rows, `[rows, LENGTH]`.
        whole: the leaves of all other blocks.
        center: of the blocks in rows the leaves that noise is added to; None for the parent's.
    """

    rows: jax.Array
    whole: Arrays
    center: Arrays | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "updates", "stds", "keys", "key"],
    meta_fields=["layout", "noise", "mirrors"],
)
@dataclasses.dataclass(frozen=True)
class Population:
    """The candidates around `params + updates`, none of them drawn yet.

    Attributes:
        params: the parameters before the step, in blocks.
        updates: the base updates, leaf by leaf; stacked, they would be held besides.
        stds: the standard deviations of the noise in each block, `[many, 1, ...]` or like it.
        keys: the keys of the leaves, uint32 `[leaves, 2]`.
        key: that of the generation.
        layout: how leaves are laid out in blocks.
        noise: what is drawn.
        mirrors: whether members come in pairs.
    """

    params: Arrays
    updates: Arrays
    stds: Arrays
    keys: jax.Array
    key: jax.Array
    layout: Layout
    noise: Noise
    mirrors: bool

    # Members, by their numbers.

    def draw_of(self, member: jax.Array) -> jax.Array:
        """The number of the draw that makes a member; of the parent that of the first."""
        return jnp.maximum(member - 1, 0) // (1 + self.mirrors)

    def is_mirrored(self, member: jax.Array) -> jax.Array:
        """Whether a member has the opposite sign of its draw."""
        return (member > 0) & (member % 2 == 0) & self.mirrors

    def sign_of(self, member: jax.Array) -> jax.Array:
        """The sign of a member's noise, float32 `[]`: zero for the parent."""
        return jnp.where(member == 0, 0.0, jnp.where(self.is_mirrored(member), -1.0, 1.0)).astype(
            jnp.float32
        )

    def parent(self, with_center: bool = True) -> Candidate:
        """The parent, whose numbers count for nothing: its sign is zero."""
        rows = jnp.zeros([self.layout.row_count, packing.LENGTH], jnp.float32)
        whole = tuple(map(self.parent_block, self.layout.whole))
        center = tuple(map(self.parent_block, self.layout.in_rows)) if with_center else None
        return Candidate(rows, whole, center)

    def parent_block(self, at: int) -> jax.Array:
        """The parent's leaves in one block."""
        return arithmetic.add(self.params[at], self.layout.stack_one(at, self.updates))

    def draw_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """Returns a member in the memory of another candidate if `pred` holds, else that one.

        The second member of a pair is made of the first, which must be the one that is held.
        """
        mirrored = self.is_mirrored(member)
        numbers = held.rows, held.whole
        numbers = xla.write_if(pred & ~mirrored, member, self._draw, numbers)
        if self.mirrors:
            whole = xla.run_if(pred & mirrored, _mirror, numbers[1], self)
            numbers = numbers[0], whole
        return held._replace(rows=numbers[0], whole=numbers[1])

    def redraw_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """The same for a member whose pair is not held."""

        def draw(member: jax.Array) -> tuple[jax.Array, Arrays]:
            # The first of the pair has a number of its own.
            first = member - self.is_mirrored(member).astype(member.dtype)
            rows, whole = self._draw(first)
            return rows, whole

        numbers = xla.write_if(pred, member, draw, (held.rows, held.whole))
        if self.mirrors:
            mirrored = pred & self.is_mirrored(member)
            numbers = numbers[0], xla.run_if(mirrored, _mirror, numbers[1], self)
        return held._replace(rows=numbers[0], whole=numbers[1])

    def draw_rows(self, draw: jax.Array) -> jax.Array:
        """The numbers of all blocks in rows."""
        return self.layout.draw_rows(self.keys, draw)

    def draw_whole(self, draw: jax.Array) -> Arrays:
        """The leaves of all other blocks of a member with positive sign."""
        population, draw = xla.no_hoist(self, draw)
        return tuple(population._displaced(at, draw) for at in self.layout.whole)

    def mirrored_whole(self, whole: Arrays) -> Arrays:
        """The leaves of these blocks on the other side of the parent, made in place."""
        return tuple(map(self._mirrored, self.layout.whole, whole))

    def _draw(self, member: jax.Array) -> tuple[jax.Array, Arrays]:
        draw = self.draw_of(member)
        return self.draw_rows(draw), self.draw_whole(draw)

    def _displaced(self, at: int, draw: jax.Array) -> jax.Array:
        return self._reach(
            at, self.parent_block(at), self._noise(at, self._numbers(at, None, draw))
        )

    def _numbers(self, at: int, rows: jax.Array | None, draw: jax.Array) -> Arrays:
        """The numbers of a block in a draw, with a leading axis of its leaves."""
        if rows is not None and self.layout.blocks[at].rows is not None:
            return self.layout.blocks[at].read(rows)
        parts = self._draws(at, draw) if _draws_itself(self.noise) else self._normals(at, draw)
        return tuple(part[None] for part in parts)

    def _normals(self, at: int, draw: jax.Array) -> Arrays:
        """The normal numbers of the leaf of a block that is not in rows."""
        block, leaf = self.layout.blocks[at], self.params[at][0]
        parts, start = [], 0
        for shape in block.parts:
            # In the sharding of the leaf: no device holds all of its numbers.
            sharding = jax.typeof(leaf).sharding if shape == leaf.shape else None
            key = self.keys[block.leaves[0]]
            parts.append(random.normals_of(key, draw, start, shape, sharding))
            start += math.prod(shape)
        return tuple(parts)

    def _draws(self, at: int, draw: jax.Array) -> Arrays:
        """The numbers that the noise draws itself; of a complex leaf two draws."""
        block, leaf = self.layout.blocks[at], self.params[at][0]
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        parts: list[jax.Array] = []
        for side in range(1 + is_complex):
            key = random.derive(self.keys[block.leaves[0]], _OF_OTHER_DRAWS + side, draw)
            key = jax.random.wrap_key_data(key, impl="threefry2x32")
            drawn = self.noise.draw(key, leaf.real if is_complex else leaf)
            parts.extend(map(jnp.asarray, jax.tree.leaves(drawn)))
        return tuple(parts)

    def _mirrored(self, at: int, leaf: jax.Array) -> jax.Array:
        wide = arithmetic.wide_dtype(leaf.dtype)
        parent = self.parent_block(at).astype(wide)
        return self._reach(at, parent.astype(leaf.dtype), parent - leaf.astype(wide))

    # Leaves.

    def leaves(
        self, held: Candidate, sign: jax.Array, without: Sequence[int] = ()
    ) -> dict[int, jax.Array]:
        """The leaves of a candidate by their positions, without those of some blocks."""
        layout = self.layout
        blocks: dict[int, jax.Array] = dict(zip(layout.whole, held.whole, strict=True))
        formed = [at for at in layout.in_rows if at not in without]
        stacks = [at for at in formed if layout.blocks[at].many > 1]
        blocks |= {at: self._formed(at, held, sign) for at in formed if at not in stacks}
        if stacks:
            # In a loop of its own: a leaf would be formed within what takes it out of its stack.
            def form(index: jax.Array) -> Arrays:
                (inside, fixed), _ = xla.no_hoist((self, (held, sign)), index)
                return tuple(inside._formed(at, *fixed) for at in stacks)

            blank = tuple(jnp.zeros_like(self.params[at]) for at in stacks)
            always, index = self._always(), jnp.int32(0)
            blocks |= zip(stacks, xla.write_if(always, index, form, blank), strict=True)
        return self.separate([blocks.get(at) for at in range(len(layout.blocks))])

    def separate(self, blocks: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
        """The leaves in some blocks by their positions; those of a stack as buffers of their own.

        XLA would take a leaf out of its stack within what uses it: another piece of program for
        each layer of a network.
        """
        pairs = [
            (block, stack)
            for block, stack in zip(self.layout.blocks, blocks, strict=True)
            if stack is not None
        ]
        leaves = {block.leaves[0]: stack[0] for block, stack in pairs if block.many == 1}
        stacks = {block.leaves: stack for block, stack in pairs if block.many > 1}
        if stacks:
            blank = {
                of: tuple(jnp.zeros_like(leaf) for leaf in stack) for of, stack in stacks.items()
            }

            def split(_: Any, stacks: dict[Any, jax.Array]) -> dict[Any, Arrays]:
                return {of: _split(stack) for of, stack in stacks.items()}

            for of, singles in xla.run_if(self._always(), split, blank, stacks).items():
                leaves.update(zip(of, singles, strict=True))
        return leaves

    def form_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """The leaves of a member in the memory of the child if `pred` holds, else the child."""
        held = self.redraw_into(held, member, pred)

        def form(member: jax.Array) -> Arrays:
            (inside, rows), member = xla.no_hoist((self, held.rows), member)
            parent = Candidate(rows, (), None)
            return tuple(
                inside._formed(at, parent, inside.sign_of(member)) for at in self.layout.in_rows
            )

        return held._replace(center=xla.write_if(pred, member, form, held.center))

    def _always(self) -> jax.Array:
        """True, which XLA cannot know."""
        return ~xla.opaque_false(self.key.astype(jnp.int32) & 1)

    def center_of(self, held: Candidate, at: int) -> jax.Array:
        """The leaves that noise is added to, in one block in rows."""
        if held.center is None:
            return self.parent_block(at)
        return held.center[self.layout.in_rows.index(at)]

    def _formed(self, at: int, held: Candidate, sign: jax.Array) -> jax.Array:
        """The leaves of a candidate in one block in rows."""
        center = self.center_of(held, at)
        noise = self._noise(at, self.layout.blocks[at].read(held.rows))
        return self._reach(at, center, sign.astype(noise.dtype) * noise)

    def reached(self, at: int, step: jax.Array) -> jax.Array:
        """The leaves next to parent + step in one block, of the points that updates lead to."""
        return self._reach(at, self.parent_block(at), step)

    def _reach(self, at: int, center: jax.Array, step: jax.Array) -> jax.Array:
        params = self.params[at]
        return arithmetic.reach(arithmetic.add(center, step), params, self.updates[self.layout.blocks[at].leaves[0]].dtype)

    # Noise.

    def _noise(self, at: int, parts: Arrays) -> jax.Array:
        """The noise in one block, from its numbers with a leading axis of the leaves."""
        return scaled(self.stds[at], self.form(at, parts))

    def units(self, draw: jax.Array) -> list[jax.Array]:
        """The noise of a draw, of unit variance, in each block."""
        rows, every = self.draw_rows(draw), range(len(self.layout.blocks))
        return [self.form(at, self._numbers(at, rows, draw)) for at in every]

    def form(self, at: int, parts: Arrays) -> jax.Array:
        """Noise of unit variance in one block, `[many, *shape]`."""
        return self._over_reals(at, parts, self.noise.form, 0)

    def form_sum(self, at: int, parts: Arrays, weights: jax.Array) -> jax.Array:
        """The sum of weight * noise over draws, in one block.

        Args:
            at: the block.
            parts: its numbers in each draw, `[draws, many, *part]`.
            weights: `[draws]`.
        """

        def form_sum(parts: Arrays, leaf: jax.Array) -> jax.Array:
            own = weights.astype(arithmetic.sum_dtype(leaf.dtype))
            if own.size == 1:  # XLA adds a product where it is used, but holds a sum of products
                return own[0] * self.noise.form(tuple(part[0] for part in parts), leaf)
            return self.noise.form_sum(parts, own, leaf)

        return scaled(self.stds[at], self._over_reals(at, parts, form_sum, 1))

    def _over_reals(
        self, at: int, parts: Arrays, fn: Callable[[Arrays, jax.Array], jax.Array], axis: int
    ) -> jax.Array:
        """Maps `fn` over the leaves of a block; of complex ones over real and imaginary parts."""
        leaves = self.params[at]
        mapped = jax.vmap(fn, in_axes=(axis, 0)) if leaves.shape[0] > 1 else _unmapped(fn, axis)
        if not jnp.issubdtype(leaves.dtype, jnp.complexfloating):
            return _checked(self.noise, mapped(parts, leaves), leaves)
        half = len(parts) // 2
        real, imaginary = (mapped(p, leaves.real) for p in (parts[:half], parts[half:]))
        sides = (_checked(self.noise, side, leaves.real) for side in (real, imaginary))
        return lax.complex(*sides) / math.sqrt(2)


def population_around(
    params: Sequence[jax.Array],
    updates: Sequence[jax.Array],
    positions: Sequence[int],
    *,
    noise: Noise,
    mirrors: bool,
    sigma: jax.Array,
    read: Sequence[jax.Array] | None,
    key: jax.Array,
) -> Population:
    """Prepares the candidates around `params + updates`; draws nothing.

    Args:
        params: the mutating leaves before the step.
        updates: their base updates.
        positions: of these leaves among all leaves of the parameters.
        noise: what is drawn.
        mirrors: whether members come in mirrored pairs.
        sigma: `[]`.
        read: what the noise reads, a leaf for each of these; None for nothing.
        key: of the generation, uint32 `[2]`.
    """
    layout = packing.lay_out(params, updates, functools.partial(_parts_of, noise))
    stacks, steps = layout.stack(params), layout.stack(updates)
    reads = (None,) * len(stacks) if read is None else layout.stack(read)
    stds = tuple(
        _stds(noise, arithmetic.add(stack, step), sigma, read)
        for stack, step, read in zip(stacks, steps, reads, strict=True)
    )
    leaf_keys = random.derive(
        random.derive(key, _OF_LEAVES, 0), 0, jnp.asarray(positions, jnp.uint32)
    )
    return Population(stacks, tuple(updates), stds, leaf_keys, key, layout, noise, mirrors)


def units_of_one(noise: Noise, leaf: jax.Array) -> jax.Array:
    """The noise of unit variance in an example of one leaf, with a leading axis."""
    layout = packing.lay_out([leaf], [leaf], functools.partial(_parts_of, noise))
    blocks, keys = (leaf[None],), jnp.zeros((1, 2), jnp.uint32)
    population = Population(blocks, blocks, (), keys, keys[0], layout, noise, False)
    return population.units(jnp.int32(0))[0]


def _stds(noise: Noise, stack: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
    """The standard deviations in a block, leaf by leaf: the same bits as for one leaf alone."""
    real = arithmetic.real_dtype(stack.dtype)

    def std(leaf: jax.Array, read: jax.Array | None) -> jax.Array:
        found = jnp.asarray(noise.std(leaf, sigma.astype(real), read), real)
        fits = all(own in (1, size) for own, size in zip(found.shape, leaf.shape, strict=False))
        if found.ndim not in (0, leaf.ndim) or not fits:
            raise ValueError(
                f"`noise.std` must return a scalar or an array like its leaf, {leaf.shape}, got "
                f"shape {found.shape} from {noise!r}."
            )
        found = found.reshape(found.shape or (1,) * leaf.ndim)
        # Noise is nowhere 64 deviations away: it is finite, and no times it is zero.
        return jnp.where(jnp.isfinite(64 * found), found, jnp.zeros_like(found))

    if not stack.size:
        return jnp.zeros((stack.shape[0], *(1,) * (stack.ndim - 1)), real)
    if stack.shape[0] == 1:
        return std(stack[0], None if read is None else read[0])[None]
    stds: jax.Array = lax.map(lambda pair: std(*pair), (stack, read))
    return stds


def scaled(std: jax.Array, unit: jax.Array) -> jax.Array:
    """Noise from its standard deviation, rounded so that XLA adds the same numbers everywhere."""
    return xla.round_for_fma(finite(std * unit))


def finite(noise: jax.Array) -> jax.Array:
    """Noise with zeros in place of what is not finite."""
    return jnp.where(jnp.isfinite(noise), noise, jnp.zeros_like(noise))


def _parts_of(noise: Noise, leaf: jax.ShapeDtypeStruct) -> packing.Shapes | None:
    if _draws_itself(noise):
        return None
    parts = tuple(noise.normals(_real_like(leaf)))
    return parts * 2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else parts


def _draws_itself(noise: Noise) -> bool:
    return type(noise).draw is not Noise.draw


def _real_like(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.finfo(leaf.dtype).dtype)


def _mirror(whole: Arrays, population: Population) -> Arrays:
    return population.mirrored_whole(whole)


def _unmapped(fn: Callable[[Arrays, jax.Array], jax.Array], axis: int) -> Callable[..., jax.Array]:
    """`fn` for one leaf with a leading axis; under `jax.vmap` it would lose its sharding."""
    return lambda parts, leaf: fn(tuple(lax.squeeze(p, [axis]) for p in parts), leaf[0])[None]


def _checked(noise: Noise, formed: Any, like: jax.Array) -> jax.Array:
    """Noise of a block in float32 or wider, refused by name if it is none."""
    if jnp.shape(formed) != like.shape:
        raise ValueError(
            f"`noise` must be of the shape of its leaf, {like.shape[1:]}, got "
            f"{jnp.shape(formed)[1:]} from {noise!r}."
        )
    dtype = jnp.result_type(formed)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`noise` must be real floating-point numbers for a leaf of {like.dtype}, got {dtype} "
            f"from {noise!r}."
        )
    return jnp.asarray(formed, jnp.promote_types(dtype, arithmetic.wide_dtype(like.dtype)))


def _split(stack: jax.Array) -> Arrays:
    return tuple(lax.squeeze(leaf, [0]) for leaf in lax.split(stack, (1,) * stack.shape[0]))
