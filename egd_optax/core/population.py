"""Mutate: candidates around a parent, each drawn from its number and never held together.

The noise of a leaf depends on (key, cycle, generation, draw, position of the leaf). So a member can
be drawn again at any time, on any device, in any order. Member 0 is the parent. If members are
mirrored, (1, 2), (3, 4), ... are pairs of one draw with opposite signs: Brockhoff et al., `Mirrored
Sampling and Sequential Selection for Evolution Strategies
<https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010.

A candidate is an update: its noise is added to the base update, in that dtype. It is evaluated at
the point that `optax.apply_updates` leads to, to the bit. The update of integers has a fraction,
see `backend/fixed_point.py`. Members are whole steps around the point, and only the child has it.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.backend import arithmetic, fixed_point, packing, random, xla
from egd_optax.backend.packing import Arrays, Layout
from egd_optax.backend.placement import like_an_argument
from egd_optax.backend.unpacking import unpack
from egd_optax.core.blocks import Blocks, Zeros, held, parent_of
from egd_optax.core.bounds import Bend, Bounds, OfLeaves, update_within
from egd_optax.core.perturbation import Perturbation, perturbation_of
from egd_optax.core.refinement import Refined, learn
from egd_optax.noise.interface import Noise

# Purposes of the keys that a generation derives from its own.
_OF_LEAVES, OF_ACCEPTANCE = range(2)
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
        center: the updates of the blocks in rows that noise is added to. Also those of a child in
            blocks of integers, which its leaves do not hold; None for the base's.
    """

    rows: jax.Array
    whole: Arrays
    center: Arrays | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "updates", "bounds", "perturbation", "key"],
    meta_fields=["mirrors", "refined"],
)
@dataclasses.dataclass(frozen=True)
class Population:
    """The candidates around `params + updates`, none of them drawn yet.

    Attributes:
        params: the parameters before the step, in blocks.
        updates: the base updates, in blocks.
        bounds: of each block; None for blocks without any.
        perturbation: the noise.
        key: that of the generation, uint32 `[2]`.
        mirrors: whether members come in pairs.
        refined: see `core/refinement.py`; None if members do not learn.
    """

    params: Arrays
    updates: tuple[jax.Array | Zeros, ...]
    bounds: OfLeaves
    perturbation: Perturbation
    key: jax.Array
    mirrors: bool
    refined: Refined | None = None

    @property
    def layout(self) -> Layout:
        """How leaves are laid out in blocks."""
        return self.perturbation.layout

    @property
    def of_integers(self) -> tuple[int, ...]:
        """The blocks of integers; their leaves are held."""
        whole = self.layout.whole
        return tuple(at for at in whole if fixed_point.is_integer(self.params[at].dtype))

    @property
    def has_odd_pairs(self) -> bool:
        """Whether the two of a pair may be no opposites: a bound can stop one, or each learned."""
        return bool(self.of_integers or self.refined) or any(b is not None for b in self.bounds)

    @property
    def centered(self) -> tuple[int, ...]:
        """The blocks whose updates a candidate holds."""
        return (*self.layout.in_rows, *self.of_integers)

    # Members, by their numbers.

    def draw_of(self, member: jax.Array) -> jax.Array:
        """The number of the draw that makes a member; for the parent, that of the first member."""
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
        center = tuple(map(self.base_update, self.centered)) if with_center else None
        return Candidate(rows, tuple(map(self.parent_block, self.layout.whole)), center)

    def parent_block(self, at: int) -> jax.Array:
        """The parent's leaves in one block."""
        return parent_of(self.params[at], self.updates[at])

    def base_update(self, at: int) -> jax.Array:
        """The base updates in one block."""
        return held(self.updates[at], self.params[at])

    def draw_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """Returns a member in the memory of another candidate if `pred` holds, else that one.

        The second member of a pair is made of the first, which must be the one that is held.
        """
        rows, whole = xla.write_if(pred & ~self.is_mirrored(member), member, self._draw, held[:2])
        return self._completed(held._replace(rows=rows, whole=whole), member, pred)

    def redraw_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """The same for a member whose pair is not held."""

        def draw(member: jax.Array) -> tuple[jax.Array, Arrays]:
            # The first of the pair has a number of its own.
            return self._draw(member - self.is_mirrored(member).astype(member.dtype))

        rows, whole = xla.write_if(pred, member, draw, held[:2])
        return self._completed(held._replace(rows=rows, whole=whole), member, pred)

    def _completed(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """A member, in place of the first of its pair that is held, if `pred` holds."""
        whole = held.whole
        if self.mirrors:
            mirrored = pred & self.is_mirrored(member)
            whole = xla.run_if(mirrored, _mirror, whole, self, self.draw_of(member))
        return held._replace(whole=self.learned(whole, member, pred))

    def learned(self, whole: Arrays, member: jax.Array, pred: jax.Array) -> Arrays:
        """The leaves of a member after its steps, if there are any and `pred` holds."""
        return whole if self.refined is None else xla.run_if(pred, learn, whole, self, member)

    def rows_of(self, member: jax.Array) -> jax.Array:
        """The numbers of all blocks in rows, of a member."""
        return self.perturbation.draw_rows(self.draw_of(member))

    def draw_whole(self, draw: jax.Array) -> Arrays:
        """The leaves of all other blocks of a member with positive sign."""
        population, draw = xla.no_hoist(self, draw)
        return tuple(population.drawn(at, draw) for at in self.layout.whole)

    def mirrored_whole(self, whole: Arrays, draw: jax.Array) -> Arrays:
        """The leaves of these blocks on the other side of the parent, made in place."""
        pairs = zip(self.layout.whole, whole, strict=True)
        return tuple(self.mirrored(at, leaf, draw) for at, leaf in pairs)

    def mirrored(self, at: int, leaf: jax.Array, draw: jax.Array) -> jax.Array:
        """The same in one block.

        Leaves with bounds are drawn again: a side that was bent does not tell the other one. So
        are those that learned.
        """
        if at in self.of_integers or self.bounds[at] is not None or self.refined:
            return self.drawn(at, draw, -1)
        parent = arithmetic.widen(self.parent_block(at))
        other = arithmetic.cast(parent + (parent - arithmetic.widen(leaf)), leaf.dtype)
        dtype = self.base_update(at).dtype
        return self.reach(at, arithmetic.difference(other, self.params[at], dtype))

    def _draw(self, member: jax.Array) -> tuple[jax.Array, Arrays]:
        return self.rows_of(member), self.draw_whole(self.draw_of(member))

    def drawn(self, at: int, draw: jax.Array, sign: int = 1) -> jax.Array:
        """The leaves of a member in one block that is not in rows."""
        if at in self.of_integers:
            noise, bounds = self.perturbation.dithered(at, draw), self.perturbation.bounds(at)
            return fixed_point.rounded(self.parent_block(at), sign * noise, bounds)
        noise = sign * self.perturbation.drawn(at, draw)
        return self.reach(at, self.stepped(at, noise, Bounds.reflected))

    # Leaves.

    def leaves(
        self, held: Candidate, sign: jax.Array, without: Sequence[int] = ()
    ) -> dict[int, jax.Array]:
        """The leaves of a candidate by their positions, without those of some blocks."""
        layout = self.layout
        blocks = dict(zip(layout.whole, map(like_an_argument, held.whole), strict=True))
        formed = [at for at in layout.in_rows if at not in without]
        stacks = [at for at in formed if layout.blocks[at].many > 1]
        blocks |= {at: self._formed(at, held, sign) for at in formed if at not in stacks}
        if stacks:
            # In a loop of its own: a leaf would be formed within what takes it out of its stack.
            def form(index: jax.Array) -> Arrays:
                (inside, fixed), _ = xla.no_hoist((self, (held, sign)), index)
                return tuple(inside._formed(at, *fixed) for at in stacks)

            # Like the leaves that are formed, which may vary over a manual axis.
            blank = tuple(jnp.zeros_like(self._formed(at, held, sign)) for at in stacks)
            always, index = ~xla.opaque_false(self._witness()), jnp.int32(0)
            blocks |= zip(stacks, xla.write_if(always, index, form, blank), strict=True)
        return self.separate([blocks.get(at) for at in range(len(layout.blocks))])

    def separate(self, blocks: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
        """The leaves in some blocks by their positions, each in a buffer of its own."""
        return unpack(self.layout, blocks, self.key.astype(jnp.int32) & 1)

    def form_into(self, held: Candidate, member: jax.Array, pred: jax.Array) -> Candidate:
        """A member in the memory of the child if `pred` holds, else the child."""
        held = self.redraw_into(held, member, pred)

        def form(member: jax.Array) -> Arrays:
            (inside, rows), member = xla.no_hoist((self, held.rows), member)
            parent, sign = Candidate(rows, (), None), inside.sign_of(member)
            return tuple(inside._update_of(at, parent, sign) for at in self.layout.in_rows)

        assert held.center is not None  # narrows the type: it is that of a child
        count = len(self.layout.in_rows)
        center = xla.write_if(pred, member, form, held.center[:count])
        return held._replace(center=(*center, *held.center[count:]))

    def _witness(self) -> jax.Array:
        """Integers that are never negative, which XLA cannot know."""
        return self.key.astype(jnp.int32) & 1

    def updates_to(self, held: Candidate) -> Arrays:
        """The updates that lead to a child, or to what `form_into` returned, in blocks."""
        integers = self.of_integers
        places = tuple(at for at in self.layout.whole if at not in integers)
        dtypes = [self.base_update(at).dtype for at in places]

        def steps(leaves: Arrays, params: Arrays) -> Arrays:
            pairs = zip(leaves, params, dtypes, strict=True)
            return tuple(arithmetic.difference(leaf, param, dtype) for leaf, param, dtype in pairs)

        params = tuple(self.params[at] for at in places)
        whole_of = dict(zip(self.layout.whole, held.whole, strict=True))
        whole = tuple(whole_of[at] for at in places)
        if all(leaf.dtype == dtype for leaf, dtype in zip(whole, dtypes, strict=True)):
            whole = xla.in_memory_of(whole, self._witness(), steps, params)
        else:
            whole = steps(whole, params)
        updates = dict(zip(places, whole, strict=True))
        updates |= {at: self._center_of(held, at) for at in self.centered}
        return tuple(updates[at] for at in range(len(self.layout.blocks)))

    def update_beside(self, at: int, leaf: jax.Array, of_child: jax.Array) -> jax.Array:
        """The update to leaves that are taken in place of a child's, in one block of integers.

        Its fraction is that of the child if this is where the parent is: then no fitness says
        anything against it. Else it is that of the parent.
        """
        return fixed_point.beside(self.params[at], self.base_update(at), of_child, leaf)

    def center_of(self, held: Candidate, at: int) -> jax.Array:
        """The leaves that noise is added to, in one block in rows."""
        if held.center is None:  # updates of zero are not added: XLA:TPU would hold the sums
            return self.parent_block(at)
        return arithmetic.add(self.params[at], self._center_of(held, at))

    def _center_of(self, held: Candidate, at: int) -> jax.Array:
        if held.center is None:
            return self.base_update(at)
        return held.center[self.centered.index(at)]

    def _update_of(self, at: int, held: Candidate, sign: jax.Array) -> jax.Array:
        """The update that leads to a candidate, in one block in rows."""
        center = self._center_of(held, at)
        return arithmetic.add(center, self.perturbation.read(at, held.rows, sign))

    def _formed(self, at: int, held: Candidate, sign: jax.Array) -> jax.Array:
        """The leaves of a candidate in one block in rows."""
        formed = arithmetic.add(self.params[at], self._update_of(at, held, sign))
        return like_an_argument(formed, self.params[at])

    def stepped(self, at: int, step: jax.Array, bend: Bend = Bounds.clipped) -> jax.Array:
        """The update that leads to parent + step, in one block, bent to its bounds."""
        if at in self.of_integers:
            uniforms, bounds = self.perturbation.uniforms_of_child(at), self.perturbation.bounds(at)
            base = self.base_update(at)
            return fixed_point.stepped(self.params[at], base, step, uniforms, bounds)
        update, within = self.updates[at], self.bounds[at]
        if within is not None:
            return update_within(bend, within, self.params[at], self.base_update(at), step)
        if isinstance(update, Zeros):
            return arithmetic.cast(step, update.dtype)
        return arithmetic.add(update, step)

    def reach(self, at: int, update: jax.Array) -> jax.Array:
        """The leaves that an update leads to, in one block that holds leaves and no updates."""
        return arithmetic.reach(self.params[at], update)


def population_around(
    blocks: Blocks,
    positions: Sequence[int],
    *,
    noise: Noise,
    mirrors: bool,
    sigma: jax.Array,
    read: Sequence[jax.Array] | None,
    key: jax.Array,
    refined: Refined | None = None,
) -> Population:
    """Prepares the candidates around `params + updates`; draws nothing.

    Args:
        blocks: the mutating leaves before the step, their base updates, and their bounds.
        positions: of these leaves among all leaves of the parameters.
        noise: the distribution of the perturbations.
        mirrors: whether members come in mirrored pairs.
        sigma: `[]`.
        read: the arrays that the noise reads, a leaf for each of these; None for nothing.
        key: of the generation, uint32 `[2]`.
        refined: see `Population`.
    """
    layout, params, updates, bounds = blocks
    parents = tuple(map(parent_of, params, updates))
    of_leaves = random.derive(key, _OF_LEAVES, 0)
    keys = random.derive(of_leaves, 0, jnp.asarray(positions, jnp.uint32))
    perturbation = perturbation_of(noise, layout, params, parents, read, sigma, keys)
    return Population(params, updates, bounds, perturbation, key, mirrors, refined)


def _mirror(whole: Arrays, population: Population, draw: jax.Array) -> Arrays:
    return population.mirrored_whole(whole, draw)
