"""The k best members so far, in slots."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class Slots(NamedTuple):
    """Which members are kept; no order among the slots.

    Attributes:
        fitness: of the member in each slot, `[k]`; +inf marks an empty slot.
        member: its number, int32 `[k]`; negative in an empty slot.
    """

    fitness: jax.Array
    member: jax.Array

    def insert(self, member: jax.Array, fitness: jax.Array) -> tuple["Slots", jax.Array]:
        """Gives a better member the place of the worst one; of equal ones the last loses it.

        Returns:
            The slots, and the one that the member took, int32 `[]`; k if it took none.
        """
        worst = jnp.max(self.fitness)
        last = jnp.where(self.fitness == worst, self.member, jnp.iinfo(jnp.int32).min)
        taken = jnp.where(fitness < worst, jnp.argmax(last), self.fitness.size).astype(jnp.int32)
        here = jnp.arange(self.fitness.size) == taken
        slots = Slots(
            fitness=jnp.where(here, fitness, self.fitness),
            member=jnp.where(here, member, self.member),
        )
        return slots, taken


def empty_slots(count: int) -> Slots:
    """So many empty slots."""
    unknown = jnp.full([count], jnp.inf, jnp.result_type(float))
    return Slots(unknown, jnp.arange(-count, 0, dtype=jnp.int32))


def slots_of(fitness: jax.Array, count: int) -> Slots:
    """The slots that members would have taken one after another, from the fitness of all, `[n]`."""

    def insert(member: jax.Array, slots: Slots) -> Slots:
        return slots.insert(member, fitness[member])[0]

    result: Slots = lax.fori_loop(jnp.int32(0), jnp.int32(fitness.size), insert, empty_slots(count))
    return result
