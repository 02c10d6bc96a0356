"""Stage 5, recombine: the elites become one child; then the child has to earn its place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from egd_optax._cycle.evaluate import fitness_dtype
from egd_optax._cycle.noise import rounded_first
from egd_optax._cycle.paging import Paging
from egd_optax._cycle.select import Elites, visit
from egd_optax._cycle.snapshot import Genome, Leaves

Rule = str | Callable[[jax.Array], jax.Array]

# The rule that weighs all members, and so keeps none.
RANKED = "centered_rank"

# What a cycle can end with, in the order in which ties are settled.
PARENT, ELITE, CHILD = range(3)


def recombine(
    elites: Elites,
    genome: Genome,
    paging: Paging,
    total: Leaves,
    *,
    rule: Rule,
    temperature: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    terms: jax.Array | None = None,
) -> Leaves:
    """Child - parent = step * sum of weight * (elite - parent) over the elites.

    With a step of one and weights that sum to one the child is the weighted mean of the
    elites, more exact than the plain sum because only the differences are rounded.

    Args:
        elites: the selected members.
        genome: the moving leaves of the parent.
        paging: where the elites are.
        total: zeros like the genome, in float32 or wider.
        rule: "mean", "softmax", or a callable from fitness `[k]`, best first, to
            weights `[k]`.
        temperature: of the softmax, in units of fitness.
        step: how far the child goes, 1 for all the way to the weighted sum.
        terms: which of the elites to sum, int32, and none where out of range; None for all.

    Returns:
        Leaves like the genome, in float32 or wider. Costs one read, or with "replay" one draw, of
        every elite but the parent.
    """
    weights = jnp.asarray(step * elite_weights(rule, elites.fitness, temperature))
    if terms is not None:
        summed = jnp.zeros_like(weights, bool).at[terms].set(True, mode="drop")
        weights = jnp.where(summed, weights, 0)

    def add(rank: jax.Array, at: int, leaf: jax.Array, total: jax.Array) -> jax.Array:
        # The total differs from trip to trip in every memory mode, also where k is one.
        inside, total = genome.beside(total)
        parent = inside.leaves()[at]
        step_to = leaf.astype(total.dtype) - parent.astype(total.dtype)
        return total + rounded_first(weights[rank] * step_to)

    return visit(elites, paging, weights != 0, add, total)


def elite_weights(rule: Rule, fitness: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    """The weight of each elite, `[k]`; zero for an empty place and for a NaN weight.

    Args:
        rule: see `recombine`.
        fitness: `[k]`, ascending, +inf for an empty place.
        temperature: see `recombine`.

    Returns:
        Weights, `[k]` of `fitness_dtype()`.

    Raises:
        TypeError: the callable returns weights that are not real.
        ValueError: the callable returns weights of another shape.
    """
    finite = jnp.isfinite(fitness)
    if rule == "mean":
        weights = finite / jnp.maximum(jnp.sum(finite), 1)
    elif rule == "softmax":
        weights = jax.nn.softmax(-fitness / temperature, where=finite)
    else:
        assert callable(rule)  # narrows the type; checked at construction
        weights = _checked(rule(fitness), fitness)
    usable = finite & jnp.isfinite(weights)
    return jnp.where(usable, weights, 0).astype(fitness_dtype())


def accept(rule: str, parent: jax.Array, elite: jax.Array, child: jax.Array) -> jax.Array:
    """Decides what the cycle ends with: PARENT, ELITE or CHILD, int32 `[]`.

    Ties go to the parent, then to the elite. A child without finite fitness is never
    taken, not even by "always".

    Args:
        rule: "always", "improved" or "best".
        parent: fitness of the parent, `[]`, +inf where not finite; likewise:
        elite: of the best elite.
        child: of the child.
    """
    if rule == "always":
        return jnp.where(jnp.isfinite(child), CHILD, PARENT)
    if rule == "improved":
        return jnp.where(child < parent, CHILD, PARENT)
    return jnp.argmin(jnp.stack([parent, elite, child])).astype(jnp.int32)


def _checked(weights: jax.Array, fitness: jax.Array) -> jax.Array:
    if jnp.shape(weights) != fitness.shape:
        raise ValueError(
            "`recombine` must return one weight for each elite, shape "
            f"{fitness.shape}, got shape {jnp.shape(weights)}."
        )
    if jnp.issubdtype(jnp.result_type(weights), jnp.complexfloating):
        raise TypeError(f"`recombine` must return real weights, got {jnp.result_type(weights)}.")
    return jnp.asarray(weights)
