"""What the noise of a member is made of: one draw for most of its leaves.

XLA compiles the generator as often as it is written out, and copies it into all that uses a part
of what it draws, unless a loop stands between. So the noise of all small leaves, and all factors of
low-rank noise, come out of one draw in a loop of its own, the same one wherever a member is drawn.
A large leaf of full rank is drawn by itself, where it is used: its noise would be as much memory as
the leaf. Its key comes out of that loop too.

XLA:CPU compiles equal pieces of program once. What comes out of the loop is a buffer of its own, so
that what is done with the noise of one leaf is, for all leaves of a shape, the same piece.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._cycle import parts, threefry, xla
from egd_optax._cycle.numbers import Rows, Run
from egd_optax._cycle.parent import wide_dtype
from egd_optax._cycle.spec import Leaves
from egd_optax._cycle.stacks import LARGEST, Stacks, is_divided
from egd_optax.noise import Noise, Parts

# What the noise of a member is made of, for each entry of the genome: of small leaves the noise
# itself, else parts.
Drawn = tuple[Parts, ...]


class _Place(NamedTuple):
    """Where the numbers of an entry are: in which rows, and the first run of each of its parts."""

    rows: int
    firsts: tuple[int, ...]


class Draws(NamedTuple):
    """How the noise of a member is drawn.

    Attributes:
        noise: what draws.
        stacks: which leaves stand together.
        positions: of the leaves in the parameters.
        small: for each entry whether its noise is drawn together with others and held.
        rows: where the normal numbers are that are drawn together.
        places: where those of each entry are; None where it has none there.
        mesh: the mesh that members are divided over, if they are.
    """

    noise: Noise
    stacks: Stacks
    positions: tuple[int, ...]
    small: tuple[bool, ...]
    rows: tuple[Rows, ...]
    places: tuple[_Place | None, ...]
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None

    # Jitted, so that it is traced once for all places that draw.
    @functools.partial(jax.jit, static_argnums=0)
    def draw(
        self, key: jax.Array, member: jax.Array, stds: tuple[jax.Array, ...], genome: Leaves
    ) -> Drawn:
        """Draws what the noise of a member is made of.

        Args:
            key: raw threefry key of the cycle, uint32 `[2]`.
            member: its number in the cycle, int32 `[]`.
            stds: the standard deviations of each entry.
            genome: the entries, for their shapes and dtypes.
        """
        if not genome:
            return ()
        starts = self.stacks.starts

        def own_draw(at: int, key: jax.Array) -> Parts:
            def one(key: jax.Array, std: jax.Array, leaf: jax.Array) -> Parts:
                return parts.draw(self.noise, key, std, leaf)

            key = threefry.wrap_key_data(key)
            return self.stacks.on_entry(one, at, key, stds[at], genome[at])

        def together(
            key: jax.Array, member: jax.Array, stds: tuple[jax.Array, ...]
        ) -> tuple[Parts, ...]:
            keys = self._keys(key, member)
            # A loop in the loop: none of what follows draws again what it uses.
            rows = xla.computed_once(stds[0], self._rows, keys, stds)

            def entry(at: int) -> Parts:
                place, many = self.places[at], len(self.stacks.groups[at])
                own_key = keys[starts[at] : starts[at] + many] if many > 1 else keys[starts[at]]
                if place is not None:
                    made_of = self._read(place, rows[place.rows], many)
                elif self.small[at]:
                    made_of = own_draw(at, own_key)
                else:
                    return own_key
                return self._formed(at, made_of, genome[at]) if self.small[at] else made_of

            return tuple(map(entry, range(len(self.places))))

        drawn = xla.computed_once(stds[0], together, key, member, stds)
        drawn = xla.whole_on_each_device(drawn, self.mesh)
        return tuple(
            one if small or place is not None else own_draw(at, one)
            for at, (one, small, place) in enumerate(
                zip(drawn, self.small, self.places, strict=True)
            )
        )

    def scale(self, drawn: Drawn, by: jax.typing.ArrayLike) -> Drawn:
        """What a number, `[]`, times the noise is made of; exact for 0, 1 and -1."""

        def scaled(at: int) -> Parts:
            if self.small[at]:
                return jnp.asarray(by, drawn[at].dtype) * drawn[at]
            return self.stacks.on_entry(
                lambda made_of: parts.scale(self.noise, made_of, by), at, drawn[at]
            )

        return tuple(map(scaled, range(len(drawn))))

    def form(self, drawn: Drawn, genome: Leaves) -> Leaves:
        """The noise of each entry, in float32 or wider."""
        pairs = enumerate(zip(drawn, genome, strict=True))
        return tuple(self.form_entry(at, *pair) for at, pair in pairs)

    def form_entry(self, at: int, made_of: Parts, entry: jax.Array) -> jax.Array:
        """The noise of one entry."""
        return made_of if self.small[at] else self._formed(at, made_of, entry)

    def weighted_sum(self, drawn: Drawn, weights: jax.Array, genome: Leaves) -> Leaves:
        """The sum of weight * noise over members, in their order, all of which are drawn.

        Args:
            drawn: of each member, with a leading axis `[n]`.
            weights: `[n]`.
            genome: the entries, for their shapes and dtypes.
        """

        def total(at: int) -> jax.Array:
            dtype = parts.sum_dtype(genome[at].dtype)
            if self.small[at]:
                noises = drawn[at].astype(dtype)
                terms = jnp.expand_dims(weights.astype(dtype), range(1, noises.ndim)) * noises
                return jnp.sum(terms, axis=0)
            return self.stacks.on_entry(
                lambda made_of, leaf: parts.weighted_sum(self.noise, made_of, weights, leaf),
                at,
                drawn[at],
                genome[at],
                axes=(1, 0),
            )

        return tuple(map(total, range(len(drawn))))

    def _keys(self, key: jax.Array, member: jax.Array) -> jax.Array:
        """The raw keys of the leaves, uint32 `[n, 2]`, in the order that they have in a genome."""
        positions = np.array([self.positions[at] for at in self.stacks.order], np.int32)
        return threefry.folded_in(key, member, positions)

    def _rows(self, keys: jax.Array, stds: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """The numbers that are drawn together, for each dtype."""
        of_leaves = [std.reshape(-1) for std in stds]
        return tuple(
            rows.draw(keys, jnp.concatenate([std.astype(rows.dtype) for std in of_leaves]))
            for rows in self.rows
        )

    def _read(self, place: _Place, rows: jax.Array, many: int) -> Parts:
        """The parts of an entry."""
        read = [self.rows[place.rows].read(rows, first, many) for first in place.firsts]
        read = read if many > 1 else [part[0] for part in read]
        return read[0] if len(read) == 1 else tuple(read)

    def _formed(self, at: int, made_of: Parts, entry: jax.Array) -> jax.Array:
        return self.stacks.on_entry(
            lambda made_of, leaf: parts.form(self.noise, made_of, leaf), at, made_of, entry
        )


def draws_of(
    noise: Noise,
    stacks: Stacks,
    positions: tuple[int, ...],
    genome: Leaves,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None,
    factored: tuple[bool, ...],
) -> Draws:
    """Decides what is drawn together: the noise of small leaves, and few numbers for large ones.

    Args:
        noise: what draws.
        stacks: which leaves stand together.
        positions: of the leaves in the parameters.
        genome: the entries, of which shapes, dtypes and divisions are read.
        mesh: the mesh that members are divided over, if they are.
        factored: for each entry whether its factors are held, and not its noise.
    """
    runs: dict[jnp.dtype, list[Run]] = {}
    places: list[_Place | None] = []
    small = []
    for leaf, entry, start, group, has_factors in zip(
        stacks.one_of_each(genome), genome, stacks.starts, stacks.groups, factored, strict=True
    ):
        alone = is_divided(entry)
        small.append(leaf.size <= LARGEST and not alone and not has_factors)
        normals = noise._normals(leaf) if small[-1] or (noise.redraw and not alone) else None
        if normals is None:
            places.append(None)
            continue
        its = runs.setdefault(wide_dtype(leaf.dtype), [])
        firsts = tuple(len(its) + len(group) * part for part in range(len(normals)))
        for normal in normals:
            its.extend(Run(start + at, normal) for at in range(len(group)))
        places.append(_Place(list(runs).index(wide_dtype(leaf.dtype)), firsts))
    rows = tuple(Rows(tuple(its), dtype) for dtype, its in runs.items())
    return Draws(noise, stacks, positions, tuple(small), rows, tuple(places), mesh)
