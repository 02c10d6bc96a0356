"""The child: the parent, moved by the weighted sum of its members."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import optax

from egd_optax.core.auxiliary import Seen
from egd_optax.core.population import Candidate, Population
from egd_optax.core.select import Slots
from egd_optax.core.stage import Round
from egd_optax.core.strategy import es_steps
from egd_optax.core.sums import weighted_sums
from egd_optax.core.terms import terms_of

# The update of a block, and its leaves if these are held.
Reached = tuple[jax.Array, jax.Array | None]


def landed(
    stage: Round,
    memory: Any,
    both: tuple[Candidate, optax.OptState],
    population: Population,
    fitness: jax.Array,
    seen: Seen | None,
    slots: Slots | None,
    pages: Any,
) -> tuple[Candidate, optax.OptState]:
    """The child, in the memory of a candidate."""
    spec, devices = stage.spec, stage.devices
    held, es_state = both
    weights = stage.weights(fitness, seen)
    pair = 1 if population.has_odd_pairs else spec.pair
    terms = terms_of(weights, fitness, spec.support, slots, pair=pair, devices=devices)
    sums = functools.partial(
        weighted_sums,
        population,
        terms,
        held,
        memory=memory,
        pages=pages,
        devices=devices,
    )
    reach = functools.partial(_reached, population)
    if spec.es_optimizer is None:  # each sum is a step
        return _child_of(population, held, sums(reach, in_turn=True)), es_state
    totals = sums(lambda _, total: total, in_turn=False)
    steps, es_state = es_steps(spec, stage.snapshot, population, totals, es_state)
    return _child_of(population, held, list(map(reach, range(len(steps)), steps))), es_state


def _reached(population: Population, at: int, step: jax.Array) -> Reached:
    """The update that leads to parent + step in one block, and its leaves if these are held."""
    update = population.stepped(at, step)
    return update, population.reach(at, update) if at in population.layout.whole else None


def _child_of(population: Population, held: Candidate, reached: Sequence[Reached]) -> Candidate:
    """The child, in the memory of a candidate, from what each of its blocks has reached."""
    whole = tuple(leaf for _, leaf in reached if leaf is not None)
    return Candidate(held.rows, whole, tuple(reached[at][0] for at in population.centered))
