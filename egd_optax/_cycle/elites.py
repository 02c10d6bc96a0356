"""Select: the k best members so far, in slots.

Members are drawn, scored and forgotten one after another: the population is never held
whole, only the active member and the elites are.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._cycle.fitness import fitness_dtype
from egd_optax._cycle.spec import Leaves


class Elites(NamedTuple):
    """The best members, in k slots in no order.

    Attributes:
        fitness: `[k]` of `fitness_dtype()`; +inf marks an empty slot.
        member: int32 `[k]`, their indices in the population: 0 is the parent, and an empty slot
            has a negative one.
        pages: what is stored of them, a page a slot.
    """

    fitness: jax.Array
    member: jax.Array
    pages: tuple[Leaves, ...]


def no_elites(count: int, pages: tuple[Leaves, ...] = ()) -> Elites:
    """So many empty slots; the last one is taken first."""
    return Elites(
        fitness=jnp.full([count], jnp.inf, fitness_dtype()),
        member=jnp.asarray(np.arange(-count, 0, dtype=np.int32)),
        pages=pages,
    )


def with_member(elites: Elites, member: jax.Array, fitness: jax.Array) -> tuple[Elites, jax.Array]:
    """Lets a member take the place of the worst elite, if it is better.

    The worst is the one of highest fitness and, among equals, the one drawn last. So a newcomer,
    which was drawn after all of them, must be better, not as good; +inf never is.

    Returns:
        The elites, with their pages as they were, and the slot that was taken, int32 `[]`, or k.
    """
    worst = jnp.max(elites.fitness)
    last = jnp.where(elites.fitness == worst, elites.member, jnp.iinfo(jnp.int32).min)
    taken = jnp.where(fitness < worst, jnp.argmax(last), elites.fitness.size).astype(jnp.int32)
    here = jnp.arange(elites.fitness.size) == taken
    return elites._replace(
        fitness=jnp.where(here, fitness, elites.fitness),
        member=jnp.where(here, member, elites.member),
    ), taken


def elites_of(fitness: jax.Array, count: int) -> Elites:
    """The elites among members that are all evaluated, in the slots that they would have taken."""

    def insert(member: jax.Array, elites: Elites) -> Elites:
        return with_member(elites, member, fitness[member])[0]

    result: Elites = lax.fori_loop(0, fitness.size, insert, no_elites(count))
    return result
