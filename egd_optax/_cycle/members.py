"""Mutate: member i = parent + noise, drawn from a key, so that no member need be held.

The noise of a leaf depends on (key, cycle, member, position of the leaf) and on
nothing else, so a member can be drawn again at any time, anywhere: on another
device, in another order, or after a resume. That is what `memory="replay"` rests on.
"""

from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import threefry, xla
from egd_optax._cycle.parent import Genome, plus, wide_dtype
from egd_optax._cycle.parts import draw, form, scale, weighted_sum
from egd_optax._cycle.spec import Leaves
from egd_optax.noise import Noise, Parts

T = TypeVar("T")

# Noise of a member, the parts of each of its leaves.
AllParts = tuple[Parts, ...]
# What is held of a member while it is evaluated: its leaves or, where noise says that it is cheap
# to draw again, only the parts of its noise.
Carrier = Any


class Members(NamedTuple):
    """The members of a generation, none of them drawn yet.

    Member 0 is the parent. All but it come in mirrored pairs (1, 2), (3, 4), ... where
    they are antithetic (Brockhoff et al., `Mirrored Sampling and Sequential Selection for
    Evolution Strategies <https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010): the noise of
    the second is that of the first with the sign turned.

    Attributes:
        genome: the mutating leaves of the parent.
        mutating: their positions in the parameters.
        key: threefry key of the cycle.
        first: the number of member 0 in the cycle, int32 `[]`.
        stds: the standard deviations of their noise, see `noise_std`.
        size: the members, the parent included.
        antithetic: whether they come in pairs.
        noise: what draws.
    """

    genome: Genome
    mutating: tuple[int, ...]
    key: jax.Array
    first: jax.typing.ArrayLike
    stds: tuple[jax.Array, ...]
    size: int
    antithetic: bool
    noise: Noise

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
        if self.noise.redraw:
            return jax.tree.map(jnp.zeros_like, self.parts(jnp.int32(1)))  # nothing is drawn
        return self.genome.leaves()

    def carry_next(self, member: jax.Array, before: Carrier) -> Carrier:
        """The carrier of a member, in the memory of that of the member before it.

        The parent and the second of a pair take no draw.
        """
        second = self.is_second(member)
        on = (member > 0) & ~second
        if not self.noise.redraw:
            return self._mirror_if(second, xla.drawn_into(before, member, on, self._first_of_pair))
        parts = xla.drawn_into(before, member, on, self.parts)
        if not self.antithetic:
            return parts
        return xla.at_most_once(second, lambda first: self._scaled(first, -1), parts)

    def carry_many(self, firsts: jax.Array, *, alone: bool) -> Carrier:
        """The carriers of members that are not second ones, each before the second of its pair.

        Args:
            firsts: int32 `[n]`.
            alone: whether no other device does the same for other members at the same time; then
                nothing is drawn for the parent. Devices would have to agree on that first.

        Returns:
            Carriers with a leading axis `[n]`, or `[2 * n]` of pairs.
        """

        def parts_of(first: jax.Array) -> AllParts:
            return self._scaled(self.parts(first), jnp.minimum(first, 1))  # none for the parent

        def first_of_pair(first: jax.Array) -> Leaves:
            inside, first = self.kept_inside(first)
            return inside._placed(parts_of(first))

        def next_pair(before: Leaves, first: jax.Array) -> tuple[Leaves, tuple[Leaves, ...]]:
            # In a loop of its own, which XLA:CPU divides over threads: together with the copy to
            # its place among the others it would draw in one.
            on = first > 0 if alone else ~xla.impossible(self.stds[0])
            leaves = xla.drawn_into(before, jnp.int32(0), on, lambda at: first_of_pair(first + at))
            return leaves, (leaves, mirror(leaves, self.genome.leaves()))[: self.pair]

        if self.noise.redraw:
            parts = jax.vmap(parts_of)(firsts)
            sides: tuple[Carrier, ...] = (parts, self._scaled(parts, -1))[: self.pair]
        else:  # one after another, in the memory of the members and of one draw
            _, sides = lax.scan(next_pair, self.genome.leaves(), firsts)
        return jax.tree.map(
            lambda *of_sides: jnp.stack(of_sides, 1).reshape(-1, *of_sides[0].shape[1:]), *sides
        )

    def leaves(self, carrier: Carrier) -> Leaves:
        """The mutating leaves of a member that is carried."""
        leaves: Leaves = self._placed(carrier) if self.noise.redraw else carrier
        return leaves

    # One member, wherever it is needed again.

    def member(self, member: jax.Array) -> Leaves:
        """The mutating leaves of a member but the parent: XLA forms them within what uses them."""
        inside, member = self.kept_inside(member)
        second = inside.is_second(member)
        leaves = inside._placed(inside.parts(member - second))
        if not self.antithetic:
            return leaves
        chosen: Leaves = optax.tree.where(second, mirror(leaves, inside.genome.leaves()), leaves)
        return chosen

    def redrawn(self, member: jax.Array, on: jax.Array, buffer: Leaves) -> Leaves:
        """A member but the parent, drawn into a buffer like the genome, where `on`; else that."""
        second = self.is_second(member)
        if not self.noise.redraw:
            drawn = xla.drawn_into(buffer, member - second, on, self._first_of_pair)
            return self._mirror_if(on & second, drawn)
        parts = self._scaled(self.parts(member - second), jnp.where(second, -1, 1))

        def formed(member: jax.Array) -> Leaves:
            inside, (_, own) = self.kept_inside((member, parts))
            return inside._placed(own)

        return xla.drawn_into(buffer, member, on, formed)

    def weighted_sum(self, firsts: jax.Array, weights: jax.Array) -> Leaves:
        """The sum of weight * noise over members that are not second ones, in their order.

        Args:
            firsts: the members, int32 `[n]`; one of them where the noise is no cheaper to draw
                again than to store.
            weights: `[n]`.

        Returns:
            Leaves like the genome, in float32 or wider.
        """
        leaves = self.genome.leaves()
        if self.noise.redraw:
            parts = xla.computed_once(jnp.any(weights != 0), jax.vmap(self.parts), firsts)
            return tuple(
                weighted_sum(self.noise, part, weights, leaf)
                for part, leaf in zip(parts, leaves, strict=True)
            )
        (first,), (weight,) = firsts, weights  # more would be as many copies of the genome
        return tuple(weight * noise for noise in self.deviation(self.parts(first)))

    # What they are made of.

    @property
    def pair(self) -> int:
        """How many members a draw makes."""
        return 1 + self.antithetic

    def is_second(self, member: jax.Array) -> jax.Array:
        """Whether a member is the second of a pair, bool `[]`."""
        return (member > 0) & (member % 2 == 0) & self.antithetic

    def parts(self, member: jax.Array) -> AllParts:
        """Draws what the noise of a member that is not the second of a pair is made of."""
        own = jax.random.fold_in(self.key, self.first + member)
        of_leaf = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(own, jnp.array(self.mutating))
        return tuple(
            draw(self.noise, of_leaf[at], std, leaf)
            for at, (std, leaf) in enumerate(zip(self.stds, self.genome.leaves(), strict=True))
        )

    def deviation(self, parts: AllParts) -> Leaves:
        """What sets a member apart from the parent, in float32 or wider."""
        pairs = zip(parts, self.genome.leaves(), strict=True)
        return tuple(form(self.noise, part, leaf) for part, leaf in pairs)

    def _first_of_pair(self, member: jax.Array) -> Leaves:
        inside, member = self.kept_inside(member)
        return inside._placed(inside.parts(member))

    def _placed(self, parts: AllParts) -> Leaves:
        return displaced(self.genome.leaves(), self.deviation(parts))

    def _scaled(self, parts: AllParts, by: jax.typing.ArrayLike) -> AllParts:
        """What a number, `[]`, times the noise is made of; exact for 0, 1 and -1."""
        return tuple(scale(self.noise, part, by) for part in parts)

    def _mirror_if(self, second: jax.Array, leaves: Leaves) -> Leaves:
        if not self.antithetic:
            return leaves
        return xla.at_most_once(
            second, lambda first, genome: mirror(first, genome.leaves()), leaves, self.genome
        )


# Sets the noise apart from what a training loop derives from the same key.
_PURPOSE = 0x45474421


def cycle_key(key_data: jax.Array, cycle: jax.Array) -> jax.Array:
    """The key of a cycle.

    Args:
        key_data: uint32 `[2]`, the raw key of the run.
        cycle: int32 `[]`, index of the cycle.
    """
    key = threefry.wrap_key_data(key_data)
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSE), cycle)


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
        std = std * jnp.maximum(jnp.sqrt(jnp.mean(squares)), jnp.asarray(noise.min_scale, real))
    # So many standard deviations no noise is away: it is finite, and no times it is zero.
    return jnp.where(jnp.isfinite(64 * std), std, jnp.zeros_like(std))


def displaced(genome: Leaves, deviation: Leaves) -> Leaves:
    """The genome with a deviation added, in the dtype of the genome."""
    return tuple(map(plus, genome, deviation))


def mirror(member: Leaves, genome: Leaves) -> Leaves:
    """The member on the other side of the parent, made in place: no noise is kept."""

    def other_side(leaf: jax.Array, parent: jax.Array) -> jax.Array:
        wide = wide_dtype(leaf.dtype)
        centre = parent.astype(wide)
        return (centre - (leaf.astype(wide) - centre)).astype(leaf.dtype)

    return tuple(map(other_side, member, genome))
