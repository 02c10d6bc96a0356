"""Members that are evaluated without being formed, as the parent's leaves and two factors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax.backend.placement import like_an_argument
from egd_optax.core.auxiliary import Evaluated
from egd_optax.core.fitness import Fitness
from egd_optax.core.population import Candidate, Population
from egd_optax.core.spec import CycleSpec
from egd_optax.factored.interpret import evaluate
from egd_optax.factored.leaf import Factored
from egd_optax.factored.uses import at_once, reason_to_form, uses_of


def chunks_of(
    spec: CycleSpec, population: Population, fitness: Fitness
) -> tuple[Callable[..., Evaluated] | None, int]:
    """How to evaluate members that are not formed, None if they are; and how many at a time.

    Args:
        spec: says whether to form them, or leaves it to the operations of `fitness`.
        population: the members.
        fitness: of the leaves of a candidate.

    Raises:
        ValueError: they are to be factored on a mesh whose axes are explicit.
    """
    execution = spec.execution
    formed = None, execution.candidate_batch_size or 1
    if execution.evaluate == "formed" or not any(
        map(population.perturbation.has_factors, population.layout.in_rows)
    ):
        return formed
    if any(jax.typeof(leaf).sharding.mesh.explicit_axes for leaf in population.params):
        if execution.evaluate == "auto":
            return formed
        raise ValueError(
            '`evaluate="factored"` needs a mesh of automatic axes, got parameters on one of '
            "explicit axes: make it with `axis_types=(jax.sharding.AxisType.Auto, ...)`, or pass "
            '`evaluate="formed"`.'
        )

    def score(
        population: Population, candidate: Candidate, sign: jax.Array, counts: jax.Array
    ) -> Evaluated:
        leaves = factored_leaves(population, candidate, sign)
        found: Evaluated = evaluate(fitness, leaves, counts)
        return found

    if execution.evaluate == "factored" and execution.candidate_batch_size is not None:
        return score, execution.candidate_batch_size
    leaves = jax.eval_shape(
        lambda: factored_leaves(population, population.parent(), jnp.float32(1))
    )
    counts = jax.ShapeDtypeStruct((), jnp.bool_)
    uses = uses_of(fitness, leaves, counts)
    if execution.evaluate == "auto" and reason_to_form(uses, fitness, leaves, counts):
        return formed
    return score, execution.candidate_batch_size or at_once(uses)


def factored_leaves(
    population: Population, candidate: Candidate, sign: jax.Array
) -> dict[int, Any]:
    """The leaves of a candidate by their positions; those with factors are not formed."""
    noise, blocks = population.perturbation, population.layout.blocks
    factored = [at for at in population.layout.in_rows if noise.has_factors(at)]
    leaves: dict[int, Any] = population.leaves(candidate, sign, without=factored)
    for at in factored:
        bases = like_an_argument(population.center_of(candidate, at))
        left, right = (
            factor.astype(bases.dtype) for factor in noise.factors(at, candidate.rows, sign)
        )
        for index, position in enumerate(blocks[at].leaves):
            leaves[position] = Factored(bases[index], left[index], right[index], (position,))
    return dict(sorted(leaves.items()))
