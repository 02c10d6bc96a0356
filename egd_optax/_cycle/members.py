"""Mutate: member i = parent + noise, drawn from a key, so that no member need be held.

The noise of a leaf depends on (key, cycle, member, position of the leaf) and on
nothing else, so a member can be drawn again at any time, anywhere: on another
device, in another order, or after a resume. That is what `memory="replay"` rests on.
"""

from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import threefry, xla
from egd_optax._cycle.draws import Drawn, Draws, draws_of
from egd_optax._cycle.parent import Genome, plus, wide_dtype
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.stacks import LARGEST, Stacks
from egd_optax.noise import Noise

T = TypeVar("T")

# Draws that are added up at a time, at most, and in which part of the memory of a genome: one
# matrix product over all of them takes half the time of one for each.
_AT_ONCE = 64
_SHARE = 4


class Held(NamedTuple):
    """A member that is not formed yet.

    Attributes:
        centre: the genome that its noise is added to, the parent's; of the child, the child.
        drawn: what its noise is made of.
    """

    centre: Leaves
    drawn: Drawn


# What is held of a member while it is evaluated: its leaves or, where noise says that it is cheap
# to draw again, what it is formed of.
Carrier = Leaves | Held


class Members(NamedTuple):
    """The members of a generation, none of them drawn yet.

    Member 0 is the parent. All but it come in mirrored pairs (1, 2), (3, 4), ... where
    they are antithetic (Brockhoff et al., `Mirrored Sampling and Sequential Selection for
    Evolution Strategies <https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010): the noise of
    the second is that of the first with the sign turned.

    Attributes:
        genome: the mutating leaves of the parent.
        stacks: which of them stand together in an entry.
        mutating: their positions in the parameters, in their own order.
        key: raw threefry key of the cycle, uint32 `[2]`.
        first: the number of member 0 in the cycle, int32 `[]`.
        stds: the standard deviations of the noise of each entry, see `noise_std`.
        size: the members, the parent included.
        antithetic: whether they come in pairs.
        noise: what draws.
        mesh: the mesh that they are divided over, if they are.
        factored: whether they are to be evaluated without being formed.
    """

    genome: Genome
    stacks: Stacks
    mutating: tuple[int, ...]
    key: jax.Array
    first: jax.typing.ArrayLike
    stds: tuple[jax.Array, ...]
    size: int
    antithetic: bool
    noise: Noise
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
    factored: bool = False

    def around(self, genome: Genome) -> "Members":
        """The same members, of a genome that is held in another way."""
        return self._replace(genome=genome)

    def kept_inside(self, varying: T) -> tuple["Members", T]:
        """The same for the body of a loop, see `Genome.kept_inside`."""
        genome, varying = self.genome.kept_inside(varying)
        return self.around(genome), varying

    # The members one by one, and many at a time.

    def carry_parent(self) -> Carrier:
        """The carrier that a loop over the members starts from: member 0."""
        leaves = self.genome.leaves()
        if not self.noise.redraw:
            return leaves
        # XLA forms each leaf of a member where it is used, and holds no more than that, and the
        # parent: where a leaf is formed within a matrix product, to add parameters and updates up
        # there takes longer. Nothing is drawn.
        return Held(leaves, jax.tree.map(jnp.zeros_like, self.drawn(jnp.int32(1))))

    def carry_next(self, member: jax.Array, before: Carrier) -> Carrier:
        """The carrier of a member, in the memory of that of the member before it.

        The parent, the second of a pair, and what comes behind the members take no draw.
        """
        second = self.is_second(member)
        on = (member > 0) & (member < self.size) & ~second
        if not isinstance(before, Held):
            return self._mirror_if(second, xla.drawn_into(before, member, on, self._first_of_pair))
        drawn = xla.drawn_into(before.drawn, member, on, self.drawn)
        if self.antithetic:
            drawn = xla.at_most_once(second, lambda first: self._draws.scale(first, -1), drawn)
        return before._replace(drawn=drawn)

    def carry_child(self, child: Leaves, before: Carrier) -> Carrier:
        """The carrier of the child, in the memory of that of a member."""
        if not isinstance(before, Held):
            return child
        return Held(child, jax.tree.map(jnp.zeros_like, before.drawn))

    def carried(self, carrier: Carrier) -> Leaves:
        """The child, from its carrier."""
        return carrier.centre if isinstance(carrier, Held) else carrier

    def carry_many(self, firsts: jax.Array, *, alone: bool) -> Drawn | Leaves:
        """The carriers of members that are not second ones, each before the second of its pair.

        Args:
            firsts: int32 `[n]`.
            alone: whether no other device does the same for other members at the same time; then
                nothing is drawn for the parent. Devices would have to agree on that first.

        Returns:
            What `formed` takes, with a leading axis `[n]`, or `[2 * n]` of pairs.
        """

        def drawn_of(first: jax.Array) -> Drawn:
            # None for the parent.
            return self._draws.scale(self.drawn(first), jnp.minimum(first, 1))

        def first_of_pair(first: jax.Array) -> Leaves:
            inside, first = self.kept_inside(first)
            return inside._placed(drawn_of(first))

        def next_pair(before: Leaves, first: jax.Array) -> tuple[Leaves, tuple[Leaves, ...]]:
            # In a loop of its own, which XLA:CPU divides over threads: together with the copy to
            # its place among the others it would draw in one.
            on = first > 0 if alone else ~xla.impossible(self.stds[0])
            leaves = xla.drawn_into(before, jnp.int32(0), on, lambda at: first_of_pair(first + at))
            return leaves, (leaves, mirrored(leaves, self.genome))[: self.pair]

        if self.noise.redraw:
            drawn = jax.vmap(drawn_of)(firsts)
            turned = jax.vmap(lambda one: self._draws.scale(one, -1))(drawn)
            sides: tuple[Drawn | Leaves, ...] = (drawn, turned)[: self.pair]
        else:  # one after another, in the memory of the members and of one draw
            _, sides = lax.scan(next_pair, self.genome.leaves(), firsts)
        carried: Drawn | Leaves = jax.tree.map(
            lambda *of_sides: jnp.stack(of_sides, 1).reshape(-1, *of_sides[0].shape[1:]), *sides
        )
        return carried

    def leaves(self, carrier: Carrier) -> Leaves:
        """The mutating leaves of a member, or of the child, that is carried."""
        if not isinstance(carrier, Held):
            return carrier
        return self.around(self.genome.of(carrier.centre)).formed(carrier.drawn)

    def formed_beside_factors(self, drawn: Drawn) -> tuple[jax.Array | None, ...]:
        """The entries of a member that are formed; None where it has factors."""
        draws, genome = self._draws, self.genome.leaves()

        def formed(at: int) -> jax.Array:
            noise = draws.form_entry(at, drawn[at], genome[at])
            return self.genome.entry_reached(at, plus(genome[at], noise))

        skipped = enumerate(self.with_factors)
        return tuple(None if has_factors else formed(at) for at, has_factors in skipped)

    def formed(self, carried: Drawn | Leaves) -> Leaves:
        """The mutating leaves of one of `carry_many`."""
        return self._placed(carried) if self.noise.redraw else carried

    # One member, wherever it is needed again.

    def member(self, member: jax.Array) -> Leaves:
        """The mutating leaves of a member but the parent: XLA forms them within what uses them."""
        inside, member = self.kept_inside(member)
        second = inside.is_second(member)
        leaves = inside._placed(inside.drawn(inside._first(member)))
        if not self.antithetic:
            return leaves
        chosen: Leaves = optax.tree.where(second, mirrored(leaves, inside.genome), leaves)
        return chosen

    def redrawn(self, member: jax.Array, on: jax.Array, buffer: Leaves) -> Leaves:
        """A member but the parent, drawn into a buffer like the genome, where `on`; else that."""
        second = self.is_second(member)
        if not self.noise.redraw:
            drawn = xla.drawn_into(buffer, self._first(member), on, self._first_of_pair)
            return self._mirror_if(on & second, drawn)
        drawn = self._draws.scale(self.drawn(self._first(member)), jnp.where(second, -1, 1))

        def formed(member: jax.Array) -> Leaves:
            inside, (_, own) = self.kept_inside((member, drawn))
            return inside._placed(own)

        return xla.drawn_into(buffer, member, on, formed)

    @property
    def drawn_at_once(self) -> int:
        """How many members `weighted_sum` takes: draws that are few numbers beside the genome."""
        if not self.noise.redraw:
            return 1
        sizes = jax.eval_shape(self.drawn, jnp.int32(1))
        numbers: int = sum(part.size for part in jax.tree.leaves(sizes))
        genome: int = sum(entry.size for entry in self.genome.params)
        return min(max(1, genome // (_SHARE * numbers)), _AT_ONCE)

    def weighted_sum(self, firsts: jax.Array, weights: jax.Array) -> Leaves:
        """The sum of weight * noise over members that are not second ones, in their order.

        Args:
            firsts: the members, int32 `[n]`, `drawn_at_once` of them or fewer.
            weights: `[n]`.

        Returns:
            Leaves like the genome, in float32 or wider.
        """
        if firsts.size > 1:
            # One after another, in the piece of program that draws one anywhere.
            drawn = lax.map(self.drawn, firsts)
            return self._draws.weighted_sum(drawn, weights, self.genome.leaves())
        return tuple(weights[0] * noise for noise in self.deviation(self.drawn(firsts[0])))

    # What they are made of.

    @property
    def pair(self) -> int:
        """How many members a draw makes."""
        return 1 + self.antithetic

    @property
    def divisible(self) -> tuple[bool, ...]:
        """For each entry whether its noise is drawn alike with a side split in two."""
        return tuple(self.noise.divisible and not stacked for stacked in self.stacks.stacked)

    @property
    def with_factors(self) -> tuple[bool, ...]:
        """For each entry whether it is evaluated as the parent's and factors beside it."""
        leaves = self.stacks.one_of_each(self.genome.params)
        return tuple(self.factored and has_factors(self.noise, leaf) for leaf in leaves)

    def is_second(self, member: jax.Array) -> jax.Array:
        """Whether a member is the second of a pair, bool `[]`."""
        return (member > 0) & (member % 2 == 0) & self.antithetic

    def _first(self, member: jax.Array) -> jax.Array:
        """The first of the pair of a member."""
        return member - self.is_second(member).astype(member.dtype)

    def drawn(self, member: jax.Array) -> Drawn:
        """Draws what the noise of a member that is not the second of a pair is made of."""
        number = jnp.asarray(self.first + member)
        drawn: Drawn = self._draws.draw(self.key, number, self.stds, self.genome.leaves())
        return drawn

    def deviation(self, drawn: Drawn) -> Leaves:
        """What sets a member apart from the parent, in float32 or wider."""
        return self._draws.form(drawn, self.genome.leaves())

    @property
    def _draws(self) -> Draws:
        genome = self.genome.leaves()
        return draws_of(
            self.noise, self.stacks, self.mutating, genome, self.mesh, self.with_factors
        )

    def _first_of_pair(self, member: jax.Array) -> Leaves:
        inside, member = self.kept_inside(member)
        return inside._placed(inside.drawn(member))

    def _placed(self, drawn: Drawn) -> Leaves:
        return self.genome.reached(displaced(self.genome.leaves(), self.deviation(drawn)))

    def _mirror_if(self, second: jax.Array, leaves: Leaves) -> Leaves:
        if not self.antithetic:
            return leaves
        return xla.at_most_once(second, mirrored, leaves, self.genome)


# Sets the noise apart from what a training loop derives from the same key.
_PURPOSE = 0x45474421


def cycle_key(key_data: jax.Array, cycle: jax.Array) -> jax.Array:
    """The raw key of a cycle, uint32 `[2]`.

    Args:
        key_data: uint32 `[2]`, the raw key of the run.
        cycle: int32 `[]`, index of the cycle.
    """
    return threefry.folded_in(key_data, _PURPOSE, cycle)


def noise_std(leaf: jax.Array, sigma: jax.Array, noise: Noise) -> jax.Array:
    """Standard deviation of a leaf's noise.

    Args:
        leaf: a mutating leaf of the parent.
        sigma: `[]`, in units of its root mean square or, where the noise is not relative, of
            the parameters.
        noise: says which, and the floor of the root mean square.

    Returns:
        `[]` in float32 or wider. Zero where it would not be finite (the squares of a leaf can
        overflow): such a leaf stays as it is rather than turning a whole member into NaN.
    """
    real = jnp.finfo(wide_dtype(leaf.dtype)).dtype
    std = jnp.asarray(sigma, real)
    if noise.relative and leaf.size:
        squares = jnp.square(jnp.abs(leaf).astype(real))
        if leaf.size <= LARGEST:  # so that a leaf of a stack has the bits that it has by itself
            squares = xla.rounded_to_add(squares)
        std = std * jnp.maximum(jnp.sqrt(jnp.mean(squares)), jnp.asarray(noise.min_scale, real))
    # So many standard deviations no noise is away: it is finite, and no times it is zero.
    return jnp.where(jnp.isfinite(64 * std), std, jnp.zeros_like(std))


def has_factors(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be evaluated as the parent's and factors beside it."""
    # Of a float of a few digits a sum of products is another number than what it rounds to.
    real = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits >= 16
    return bool(real and noise._has_factors(leaf))


def displaced(genome: Leaves, deviation: Leaves) -> Leaves:
    """The genome with a deviation added, in the dtype of the genome."""
    return tuple(map(plus, genome, deviation))


def mirrored(member: Leaves, genome: Genome) -> Leaves:
    """The member on the other side of the parent, made in place: no noise is kept."""

    def other_side(leaf: jax.Array, parent: jax.Array) -> jax.Array:
        wide = wide_dtype(leaf.dtype)
        centre = parent.astype(wide)
        return (centre - (leaf.astype(wide) - centre)).astype(leaf.dtype)

    return genome.reached(tuple(map(other_side, member, genome.leaves())))
