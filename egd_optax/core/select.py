"""Select: the weight of each member, from the fitness of all, and the k best so far, in slots."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import xla
from egd_optax.recombine import Recombine, checked_weights


def member_weights(
    rule: Recombine, fitness: jax.Array, elite_count: int | None, read: Any
) -> jax.Array:
    """The weight of each member.

    Args:
        rule: how members recombine.
        fitness: `[n]`, +inf if not finite.
        elite_count: how many members, the best, can get a weight; None for all.
        read: the numbers that the rule reads of each member, `[n, ...]`; None for nothing.

    Returns:
        `[n]` of the dtype of a fitness. Zero for a member that is not finite or not among the
        best, and for a weight that is not finite. Zero for all members if they tie: the order of
        members would else move the parameters at random.

    Raises:
        TypeError: the rule returns weights that are not real.
        ValueError: the rule returns weights of another shape, or NaN.
    """
    count = fitness.size if elite_count is None else elite_count
    beside = () if read is None else (read,)
    if read is None:
        _check_on_an_example(rule, fitness, count)
    weights = checked_weights(rule, rule.weights(fitness, count, *beside), fitness.size)
    tied = jnp.all(fitness == fitness[0])
    usable = jnp.isfinite(fitness) & jnp.isfinite(weights) & ~tied
    if elite_count is not None:
        # Others are not held in every memory mode, so that none may weigh in any.
        _, best = lax.top_k(-fitness, count)  # stable: ties go to the smaller index
        usable &= jnp.zeros(fitness.shape, jnp.bool_).at[best].set(True)
    return jnp.where(usable, weights, 0).astype(jnp.result_type(float))


def _check_on_an_example(rule: Recombine, fitness: jax.Array, count: int) -> None:
    """Weighs an example, if that is possible while a step is traced."""
    if not hasattr(rule, "fn") and type(rule).__module__ == Recombine.__module__:
        return  # the library's own
    if jax.sharding.get_abstract_mesh().manual_axes:
        return
    with jax.ensure_compile_time_eval():
        example = jnp.arange(fitness.size, 0, -1).astype(fitness.dtype)
        weights = checked_weights(rule, rule.weights(example, count), fitness.size)
        known = jnp.all(jnp.isfinite(weights))
    if not isinstance(known, jax.core.Tracer) and not known:
        raise ValueError(
            f"`recombine` must return finite weights, got {weights} from {rule!r} for members of "
            f"fitness {example}."
        )


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

    return xla.loop(0, fitness.size, insert, empty_slots(count))
