"""The sums of weight * noise in the blocks in rows, of few draws at a time."""

from collections.abc import Container, Sequence
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import packing, xla
from egd_optax.backend.devices import Devices
from egd_optax.backend.packing import Arrays
from egd_optax.backend.products import part_of
from egd_optax.core.blocks import Zeros
from egd_optax.core.pending import Pending, together_or_alone, zeros_like
from egd_optax.core.perturbation import Perturbation
from egd_optax.core.population import Population
from egd_optax.core.terms import Terms

# Draws whose rows are held and summed at a time: so many, in this part of the memory of the leaves.
_AT_ONCE = 64
_SHARE = 4
# A part of a sum has this part of the entries of all leaves, or so many: each part draws anew.
_PARTS = 64
_LARGE_PART = 2**20


class _Few(NamedTuple):
    """The draws that a device adds up, so many at a time.

    Attributes:
        draws: their numbers, int32 `[chunks * size]`; those at the end have no weight.
        weights: `[chunks * size]`.
        trips: how many have a weight, int32 `[]`.
        size: of a chunk.
    """

    draws: jax.Array
    weights: jax.Array
    trips: jax.Array
    size: int

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return self.draws.size // self.size

    def rows(
        self, perturbation: Perturbation, chunk: jax.Array, devices: Devices
    ) -> tuple[jax.Array, jax.Array]:
        """The rows of all draws of a chunk, and their weights."""
        first = chunk * self.size

        def put(index: jax.Array, rows: jax.Array) -> jax.Array:
            return rows.at[index].set(perturbation.draw_rows(self.draws[first + index]))

        shape = self.size, perturbation.layout.row_count, packing.LENGTH
        blank = devices.varying(jnp.zeros(shape, jnp.float32))
        rows = xla.loop(0, jnp.clip(self.trips - first, 0, self.size), put, blank)
        return rows, lax.dynamic_slice_in_dim(self.weights, first, self.size)


def _few_at_a_time(population: Population, terms: Terms, most: int) -> _Few:
    """All draws in chunks of at most so many."""
    total = terms.weights.size
    count = -(-total // min(total, most))
    size = -(-total // count)
    signs = population.sign_of(terms.members).astype(terms.weights.dtype)
    more = (0, count * size - total)
    members = jnp.pad(terms.members, more, constant_values=1)
    weights = jnp.pad(signs * terms.weights, more)
    return _Few(population.draw_of(members), weights, terms.trips, size)


def sums_of_rows(
    population: Population, terms: Terms, alone: Container[int], devices: Devices
) -> dict[int, Pending]:
    """The sums in the blocks in rows; few draws at a time, to take less memory than the leaves.

    If they are drawn in several chunks, those of a block that is alone are drawn for it alone, and
    for each of its parts.
    """
    layout, noise = population.layout, population.perturbation
    if not layout.in_rows:
        return {}
    entries = sum(leaf.size for leaf in population.params)
    fit = max(1, entries // (_SHARE * packing.LENGTH * layout.row_count))
    few = _few_at_a_time(population, terms, min(_AT_ONCE, fit))
    if few.chunks == 1:  # without zeros to add to, which would be a copy
        rows = few.rows(noise, jnp.int32(0), devices)

        def make(at: int, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            return noise.weighted_sum(at, *rows)

        return {at: Pending(rows, functools.partial(make, at)) for at in layout.in_rows}

    def sums(blocks: Sequence[int]) -> Arrays:
        return _added_up(few, noise, blocks, terms.trips, devices)

    def one(at: int) -> Pending:
        own = noise.only(at)
        parts = _parts_of(population, at, max(entries // _PARTS, _LARGE_PART), devices)

        def make(trips: jax.Array, part: jax.Array | int = 0) -> jax.Array:
            return _added_up(few, own, (0,), trips, devices, part, parts)[0]

        return Pending(terms.trips, make, parts)

    return together_or_alone(sums, one, layout.in_rows, alone)


def _added_up(
    few: _Few,
    noise: Perturbation,
    blocks: Sequence[int],
    trips: jax.Array,
    devices: Devices,
    part: jax.typing.ArrayLike = 0,
    parts: int = 1,
) -> Arrays:
    """The sums in some blocks, or a part of their layers, chunk by chunk."""

    def add(chunk: jax.Array, totals: Arrays) -> Arrays:
        rows = few.rows(noise, chunk, devices)
        return tuple(
            total + noise.weighted_sum(at, *rows, added=True, part=part, parts=parts)
            for at, total in zip(blocks, totals, strict=True)
        )

    like = [part_of(noise.leaves[at], 0, parts, axis=1) for at in blocks]
    zeros = zeros_like(xla.zeros_after, like, trips, devices)
    return xla.loop(0, -(-trips // few.size), add, zeros)


def _parts_of(population: Population, at: int, most: int, devices: Devices) -> int:
    """How many parts of its layers a sum is made in, of at most so many entries each.

    One is the whole: if the block is no stack of layers, or if more than the sum is needed.
    """
    block = population.params[at]
    explicit = jax.typeof(block).sharding.mesh.explicit_axes
    still = isinstance(population.updates[at], Zeros)
    if explicit or not still or devices.axis or not _has_layers(population.perturbation, at):
        return 1
    layers = block.shape[1]
    divisors = [parts for parts in range(1, layers + 1) if layers % parts == 0]
    return next((parts for parts in divisors if block.size <= parts * most), layers)


def _has_layers(noise: Perturbation, at: int) -> bool:
    """Whether the one leaf of a block is a stack of layers, each with factors of its own."""
    leaf = noise.leaves[at]
    if leaf.shape[0] > 1 or not noise.has_factors(at):
        return False
    rows = jax.ShapeDtypeStruct((noise.layout.row_count, packing.LENGTH), jnp.float32)
    both = jax.eval_shape(lambda rows: noise.factors(at, rows, 1), rows)
    return all(factor.shape[1] == leaf.shape[1] for factor in both)
