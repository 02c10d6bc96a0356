"""Stage 2, mutate: member i = parent + sigma * scale(leaf) * normal noise.

The noise of a leaf depends on (key, cycle, member, position of the leaf) and on
nothing else, so a member can be drawn again at any time, anywhere: on another
device, in another order, or after a resume. That is what `memory="replay"` rests on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._cycle.branch import when
from egd_optax._cycle.noise import (
    Factors,
    low_rank_factors,
    scaled_noise,
    weighted_noise,
    wide_dtype,
)
from egd_optax._cycle.snapshot import Leaves

Draw = Callable[[jax.Array, Leaves], Leaves]
AllFactors = tuple[Factors | None, ...]


class Mutants(NamedTuple):
    """The members of a generation, none of them drawn yet.

    Member 0 is the parent. All but it come in mirrored pairs (1, 2), (3, 4), ... where
    they are antithetic: the noise of the second is that of the first with the sign turned.

    Attributes:
        genome: the moving leaves of the parent.
        size: the members, the parent included.
        antithetic: whether they come in pairs.
        draw: maps a member index, int32 `[]`, and a buffer like the genome to the moving
            leaves of that member, which overwrite the buffer. Member 0 leaves the buffer
            as it is: whoever draws it passes the parent.
        follow: the same, for a buffer that holds the member before, which saves the second
            of a pair its draw; the bits are the same.
        factors: maps the index of a member that is not the second of a pair to the factors
            of its low-rank noise, None for leaves with noise of full rank. Small, and dear
            where XLA computes them for every entry of the product: keep a loop's boundary
            between them and the deviation, see `when`.
        deviation: maps such an index and the factors to what sets the member apart from the
            parent, in float32 or wider.
        weighted_deviation: maps the indices of such members, `[n]`, and weights, `[n]`, to
            the sum of weight * deviation; holds the noise of all of them at once.
    """

    genome: Leaves
    size: int
    antithetic: bool
    draw: Draw
    follow: Draw
    factors: Callable[[jax.Array], AllFactors]
    deviation: Callable[[jax.Array, AllFactors], Leaves]
    weighted_deviation: Callable[[jax.Array, jax.Array], Leaves]


# Normal numbers that are drawn in one loop, unless one leaf takes more.
_TOGETHER = 2**20

# Sets the noise apart from what a training loop derives from the same key.
_PURPOSE = 0x45474421


def cycle_key(key_data: jax.Array, cycle: jax.Array) -> jax.Array:
    """The key of a cycle.

    Args:
        key_data: uint32 `[2]`, the raw key of the run.
        cycle: int32 `[]`, index of the cycle.
    """
    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSE), cycle)


def mutate(
    genome: Leaves,
    moving: tuple[int, ...],
    key: jax.Array,
    first: jax.typing.ArrayLike,
    *,
    stds: tuple[jax.Array, ...],
    size: int,
    antithetic: bool,
    rank: int | None,
) -> Mutants:
    """Prepares the members of a generation; none is drawn yet.

    Args:
        genome: the moving leaves of the parent.
        moving: their positions in the parameters.
        key: threefry key of this cycle.
        first: the number of member 0 in the cycle, int32 `[]`.
        stds: the standard deviations of their noise, see `noise_std`.
        size: the members, the parent included.
        antithetic: whether they come in mirrored pairs (Brockhoff et al., `Mirrored
            Sampling and Sequential Selection for Evolution Strategies
            <https://doi.org/10.1007/978-3-642-15844-5_2>`_, 2010).
        rank: of the noise of matrices, see `noise`; None for full rank.

    Returns:
        The members. Noise is drawn in float32, and the sum cast to the leaf's dtype.
    """

    def of_leaf(member: jax.Array, position: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, first + member), position)

    def factors(member: jax.Array) -> AllFactors:
        return tuple(
            low_rank_factors(of_leaf(member, at), std, like, rank)
            for like, std, at in zip(genome, stds, moving, strict=True)
        )

    def noise_of(at: int, member: jax.Array, parts: Factors | None) -> jax.Array:
        return scaled_noise(of_leaf(member, moving[at]), stds[at], genome[at], parts)

    def deviation(member: jax.Array, factors: AllFactors) -> Leaves:
        return tuple(noise_of(at, member, parts) for at, parts in enumerate(factors))

    def weighted_deviation(members: jax.Array, weights: jax.Array) -> Leaves:
        keys_of = jax.vmap(of_leaf, in_axes=(0, None))
        return tuple(
            weighted_noise(keys_of(members, at), weights, std, like, rank)
            for like, std, at in zip(genome, stds, moving, strict=True)
        )

    def drawn(member: jax.Array, on: jax.Array, buffer: Leaves) -> Leaves:
        end = member + on.astype(member.dtype)
        parts = factors(member)
        result = list(buffer)
        for group in _groups(genome, parts):

            def perturb(member: jax.Array, buffer: Leaves, group: Sequence[int] = group) -> Leaves:
                del buffer  # its memory is what is used
                member, own = lax.optimization_barrier((member, [parts[at] for at in group]))
                return tuple(
                    moved(genome[at], noise_of(at, member, factors))
                    for at, factors in zip(group, own, strict=True)
                )

            # A loop over this one member, or over none. See `when`: nothing is fused across,
            # and XLA cannot move the draw out of the loop because it depends on the index.
            leaves = lax.fori_loop(member, end, perturb, tuple(buffer[at] for at in group))
            for at, leaf in zip(group, leaves, strict=True):
                result[at] = leaf
        return tuple(result)

    def draw(member: jax.Array, buffer: Leaves) -> Leaves:
        return drawn(member, member > 0, buffer)

    if not antithetic:
        return Mutants(genome, size, antithetic, draw, draw, factors, deviation, weighted_deviation)

    def is_second(member: jax.Array) -> jax.Array:
        return (member > 0) & (member % 2 == 0)

    def draw_of_pair(member: jax.Array, buffer: Leaves) -> Leaves:
        second = is_second(member)
        buffer = drawn(member - second.astype(member.dtype), member > 0, buffer)
        return when(second, _mirror, buffer, genome)

    def follow(member: jax.Array, buffer: Leaves) -> Leaves:
        second = is_second(member)
        buffer = drawn(member, (member > 0) & ~second, buffer)
        return when(second, _mirror, buffer, genome)

    return Mutants(
        genome, size, antithetic, draw_of_pair, follow, factors, deviation, weighted_deviation
    )


def move(genome: Leaves, deviation: Leaves) -> Leaves:
    """The genome with a deviation added, in the dtype of the genome."""
    return tuple(map(moved, genome, deviation))


def moved(leaf: jax.Array, deviation: jax.Array) -> jax.Array:
    """A leaf with a deviation added, in the dtype of the leaf."""
    return (leaf.astype(deviation.dtype) + deviation).astype(leaf.dtype)


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
    return jnp.where(jnp.isfinite(std), std, jnp.zeros_like(std))


def _groups(genome: Leaves, parts: AllFactors) -> list[list[int]]:
    """Positions of leaves that are drawn together, in order.

    XLA takes the leaves of a loop in any order, or at the same time, and threefry works in
    several times the memory of what it draws: large leaves get a loop each. Small ones share
    one, which costs less.
    """
    groups: list[list[int]] = []
    drawn = 0
    for at, (leaf, factors) in enumerate(zip(genome, parts, strict=True)):
        size = 0 if factors else leaf.size
        if not groups or drawn + size > _TOGETHER:
            groups.append([])
            drawn = 0
        groups[-1].append(at)
        drawn += size
    return groups


def _mirror(member: Leaves, genome: Leaves) -> Leaves:
    """The member on the other side of the parent, made in place: no noise is kept."""

    def other_side(leaf: jax.Array, parent: jax.Array) -> jax.Array:
        wide = wide_dtype(leaf.dtype)
        centre = parent.astype(wide)
        return (centre - (leaf.astype(wide) - centre)).astype(leaf.dtype)

    return tuple(map(other_side, member, genome))
