"""The fitness by which parent, best member and child are compared."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import xla
from egd_optax.core import auxiliary
from egd_optax.core.auxiliary import Seen
from egd_optax.core.evaluate import NEVER, Scored
from egd_optax.core.fitness import fitness_dtype
from egd_optax.core.stage import Round, score_with


def compared(stage: Round, scored: Scored) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Scored]:
    """The fitness of parent, best member and child by which the outcome is chosen."""
    size = stage.spec.member_count
    fitness, child = scored.fitness[:size], scored.fitness[size]
    best = jnp.min(fitness)
    again = scored.fitness[size + 1]
    best = jnp.where((again != NEVER) & (jnp.argmin(fitness) > 0), again, best)
    if stage.objectives.accept_value_fn is None:
        return (fitness[0], best, child), scored
    values, seen = _judged(stage, scored)
    judged = jnp.where(jnp.isfinite(child), values[2], jnp.inf)
    return (values[0], values[1], judged), scored._replace(seen=seen)


def _judged(stage: Round, scored: Scored) -> tuple[jax.Array, Seen | None]:
    """Evaluates parent, best member and child on data that they were not selected on."""
    spec, population, devices = stage.spec, stage.population, stage.devices
    fitness = stage.fitness(stage.objectives.accept_value_fn or stage.objectives.value_fn)
    best = jnp.argmin(scored.fitness[: spec.member_count]).astype(jnp.int32)
    which = jnp.array([0, 1, 2] if spec.accept.takes_best else [0, 2], jnp.int32)

    def trip(index: jax.Array, carry: Any) -> Any:
        held, values, seen = carry
        turn = which[index]
        held = population.redraw_into(held, best, (turn == 1) & (best > 0))
        held = xla.run_if(turn == 2, lambda _, child: child, held, scored.held)
        sign = jnp.where(turn == 1, population.sign_of(best), 0)
        inside, sign = xla.no_hoist(population, sign)
        evaluated = devices.pick(score_with(fitness, inside, held, sign, devices.rank() == 0))
        seen = auxiliary.after_one(seen, evaluated, spec.member_count + 2, spec.member_count)
        return held, values.at[turn].set(evaluated.value), seen

    unknown = jnp.full([3], jnp.inf, fitness_dtype())
    start = population.parent(), unknown, scored.seen
    _, values, seen = lax.fori_loop(jnp.int32(0), jnp.int32(which.size), trip, start)
    return values, seen
