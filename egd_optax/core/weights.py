"""Select: what each member weighs, from the fitness of all; numbers only."""

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.core.fitness import fitness_dtype
from egd_optax.recombine import Recombine, checked_weights


def member_weights(rule: Recombine, fitness: jax.Array, elite_count: int | None) -> jax.Array:
    """The weight of each member.

    Args:
        rule: how members recombine.
        fitness: `[n]`, +inf where it is not finite.
        elite_count: how many can weigh something, the best; None for all.

    Returns:
        `[n]` of `fitness_dtype()`; zero for a member that is not finite or not among the best,
        for a weight that is not finite, and for all members where they tie: there is nothing to
        select, and what came first would move the parameters at random.

    Raises:
        TypeError: the rule returns weights that are not real.
        ValueError: the rule returns weights of another shape, or NaN.
    """
    count = fitness.size if elite_count is None else elite_count
    _check_on_an_example(rule, fitness, count)
    weights = checked_weights(rule, rule.weights(fitness, count), fitness.size)
    tied = jnp.all(fitness == fitness[0])
    usable = jnp.isfinite(fitness) & jnp.isfinite(weights) & ~tied
    if elite_count is not None and not rule._none_but_the_best:
        # Others are not held in every memory mode, so that none may weigh in any.
        _, best = lax.top_k(-fitness, count)  # stable: ties go to the smaller index
        usable &= jnp.zeros(fitness.shape, jnp.bool_).at[best].set(True)
    return jnp.where(usable, weights, 0).astype(fitness_dtype())


def _check_on_an_example(rule: Recombine, fitness: jax.Array, count: int) -> None:
    """Weighs an example, where that can be done while a step is traced."""
    if rule.finite or jax.sharding.get_abstract_mesh().manual_axes:
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
