"""Stage 2, mutate: member i = parent + sigma * scale(leaf) * normal noise.

The noise of a leaf depends on (key, cycle, member, position of the leaf) and on
nothing else, so a member can be drawn again at any time, anywhere: on another
device, in another order, or after a resume. That is what `memory="replay"` rests on.
"""

from typing import NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle import noise, threefry
from egd_optax._cycle.branch import apart, when
from egd_optax._cycle.noise import wide_dtype
from egd_optax._cycle.snapshot import Genome, Leaves, moved

AllParts = tuple[noise.Parts, ...]
T = TypeVar("T")


class Mutants(NamedTuple):
    """The members of a generation, none of them drawn yet.

    Member 0 is the parent. All but it come in mirrored pairs (1, 2), (3, 4), ... where
    they are antithetic (Brockhoff et al., `Mirrored Sampling and Sequential Selection for
    Evolution Strategies <https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010): the noise of
    the second is that of the first with the sign turned. Noise is drawn in float32, and the
    sum cast to the leaf's dtype.

    Attributes:
        genome: the moving leaves of the parent.
        moving: their positions in the parameters.
        key: threefry key of the cycle.
        first: the number of member 0 in the cycle, int32 `[]`.
        stds: the standard deviations of their noise, see `noise_std`.
        size: the members, the parent included.
        antithetic: whether they come in pairs.
        rank: of the noise of matrices, see `noise`; None for full rank.
    """

    genome: Genome
    moving: tuple[int, ...]
    key: jax.Array
    first: jax.typing.ArrayLike
    stds: tuple[jax.Array, ...]
    size: int
    antithetic: bool
    rank: int | None

    @property
    def low_rank(self) -> bool:
        """Whether what the noise is made of is small beside the genome."""
        return self.rank is not None

    def beside(self, value: T) -> tuple["Mutants", T]:
        """The same for the body of a loop, see `Genome.beside`."""
        genome, value = self.genome.beside(value)
        return self._replace(genome=genome), value

    def is_second(self, member: jax.Array) -> jax.Array:
        """Whether a member is the second of a pair, bool `[]`."""
        return (member > 0) & (member % 2 == 0) & self.antithetic

    def parts(self, member: jax.Array) -> AllParts:
        """Draws what the noise of a member that is not the second of a pair is made of.

        Where XLA could compute it for every entry of a product, a loop's boundary must stand
        between the two, see `apart`.
        """
        own = jax.random.fold_in(self.key, self.first + member)
        of_leaf = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(own, jnp.array(self.moving))
        return tuple(
            noise.draw_parts(of_leaf[at], std, like, self.rank)
            for at, (std, like) in enumerate(zip(self.stds, self.genome.leaves(), strict=True))
        )

    def own_parts(self, member: jax.Array) -> AllParts:
        """The same for every member but the parent."""
        second = self.is_second(member)
        return scaled(self.parts(member - second), jnp.where(second, -1, 1))

    def deviation(self, parts: AllParts) -> Leaves:
        """What sets a member apart from the parent, in float32 or wider."""
        return tuple(map(noise.form, parts, self.genome.leaves()))

    def weighted_deviation(self, members: jax.Array, weights: jax.Array) -> Leaves:
        """The sum of weight * deviation over members that are not second ones, `[n]`.

        Holds the parts of all of them at once.
        """
        parts = apart(jnp.any(weights != 0), jax.vmap(self.parts), members)
        return tuple(
            noise.form_sum(part, weights, like)
            for part, like in zip(parts, self.genome.leaves(), strict=True)
        )

    def place(self, parts: AllParts) -> Leaves:
        """The moving leaves of the member whose noise is made of these parts."""
        return move(self.genome.leaves(), self.deviation(parts))

    def member(self, member: jax.Array) -> Leaves:
        """The moving leaves of a member but the parent: XLA forms them within what uses them."""
        mutants, member = self.beside(member)
        if self.low_rank:
            return mutants.place(mutants.own_parts(member))
        second = self.is_second(member)
        first = mutants.place(mutants.parts(member - second))
        mirrored = _mirror(first, mutants.genome.leaves())
        leaves: Leaves = optax.tree.where(second, mirrored, first)
        return leaves

    def draw(self, member: jax.Array, buffer: Leaves) -> Leaves:
        """The same in a buffer like the genome, to the same bits.

        The parent leaves the buffer as it is: whoever draws it passes the parent.
        """
        if self.low_rank:
            return self._drawn(member, member > 0, buffer)
        second = self.is_second(member)
        return self._mirrored(second, self._drawn(member - second, member > 0, buffer))

    def follow(self, member: jax.Array, buffer: Leaves) -> Leaves:
        """The same for a buffer that holds the member before, which saves second ones a draw."""
        second = self.is_second(member)
        return self._mirrored(second, self._drawn(member, (member > 0) & ~second, buffer))

    def _drawn(self, member: jax.Array, on: jax.Array, buffer: Leaves) -> Leaves:
        known = self.own_parts(member) if self.low_rank else None

        def perturb(member: jax.Array, buffer: Leaves) -> Leaves:
            del buffer  # its memory is what is used
            mutants, (member, own) = self.beside((member, known))
            return mutants.place(mutants.parts(member) if own is None else own)

        # A loop over this one member, or over none: XLA cannot move the draw out of it because
        # it depends on the index.
        leaves: Leaves = lax.fori_loop(member, member + on.astype(member.dtype), perturb, buffer)
        return leaves

    def _mirrored(self, second: jax.Array, buffer: Leaves) -> Leaves:
        if not self.antithetic:
            return buffer
        return when(second, lambda first, of: _mirror(first, of.leaves()), buffer, self.genome)


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


def scaled(parts: AllParts, by: jax.Array | int) -> AllParts:
    """What a number, `[]`, times the noise is made of."""
    return tuple(noise.scaled(part, by) for part in parts)


def move(genome: Leaves, deviation: Leaves) -> Leaves:
    """The genome with a deviation added, in the dtype of the genome."""
    return tuple(map(moved, genome, deviation))


def noise_std(
    leaf: jax.Array, sigma: jax.Array, *, relative_sigma: bool, min_scale: jax.typing.ArrayLike
) -> jax.Array:
    """Standard deviation of a leaf's noise.

    Args:
        leaf: a moving leaf of the parent.
        sigma: `[]`, in units of its root mean square or, with `relative_sigma=False`, of the
            parameters.
        relative_sigma: whether `sigma` is relative.
        min_scale: floor of the root mean square, in units of the parameters.

    Returns:
        `[]` in float32 or wider. Zero where it would not be finite (the squares of a leaf can
        overflow): such a leaf stays as it is rather than turning a whole member into NaN.
    """
    real = jnp.finfo(wide_dtype(leaf.dtype)).dtype
    std = jnp.asarray(sigma, real)
    if relative_sigma and leaf.size:
        squares = jnp.square(jnp.abs(leaf).astype(real))
        std = std * jnp.maximum(jnp.sqrt(jnp.mean(squares)), jnp.asarray(min_scale, real))
    # So many standard deviations no noise is away: it is finite, and no times it is zero.
    return jnp.where(jnp.isfinite(64 * std), std, jnp.zeros_like(std))


def _mirror(member: Leaves, genome: Leaves) -> Leaves:
    """The member on the other side of the parent, made in place: no noise is kept."""

    def other_side(leaf: jax.Array, parent: jax.Array) -> jax.Array:
        wide = wide_dtype(leaf.dtype)
        centre = parent.astype(wide)
        return (centre - (leaf.astype(wide) - centre)).astype(leaf.dtype)

    return tuple(map(other_side, member, genome))
