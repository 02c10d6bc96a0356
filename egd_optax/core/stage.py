"""The data that all stages of a generation share: the parent and the members."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.backend.devices import Devices
from egd_optax.base.arguments import taken_by
from egd_optax.core.auxiliary import Evaluated, Seen
from egd_optax.core.fitness import Fitness, Snapshot, fitness_of
from egd_optax.core.population import Candidate, Population
from egd_optax.core.select import member_weights
from egd_optax.core.spec import CycleSpec, Objectives


class Round(NamedTuple):
    """The data that all stages of a generation share; nothing changes it.

    Attributes:
        spec: the settings of the cycle.
        snapshot: the parameters after the base step, the parent.
        population: the members.
        devices: share them.
        sigma: the sigma that is used, float `[]`.
    """

    spec: CycleSpec
    snapshot: Snapshot
    population: Population
    devices: Devices
    sigma: jax.Array

    def fitness(self, objectives: Objectives, value_fn: Callable[..., Any]) -> Fitness:
        """The fitness of candidates by one of the objectives."""
        added = {"generation": objectives.generation, "base_state": objectives.base_state}
        kwargs = taken_by(value_fn, objectives.extra_args, added)
        return fitness_of(
            value_fn,
            self.snapshot,
            kwargs=kwargs,
            execution=self.spec.execution,
            aux=self.spec.aux,
            reads=self.spec.recombine.reads,
        )

    def weights(self, fitness: jax.Array, seen: Seen | None) -> jax.Array:
        """The weight of each member, `[n]`; a parent that was not evaluated has no rank."""
        unranked = int(self.spec.skips_parent)
        read = None if seen is None else jax.tree.map(lambda leaf: leaf[unranked:], seen.read)
        weights = member_weights(self.spec.recombine, fitness[unranked:], self.spec.support, read)
        return jnp.pad(weights, (unranked, 0))


def score_with(
    fitness: Fitness,
    population: Population,
    candidate: Candidate,
    sign: jax.Array,
    counts: jax.Array,
) -> Evaluated:
    """Evaluates one candidate that is formed."""
    evaluated: Evaluated = fitness(population.leaves(candidate, sign), counts)
    return evaluated
