"""Members that are evaluated without being formed: the parent's leaves, and factors beside them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax.core.auxiliary import Evaluated
from egd_optax.core.fitness import Fitness
from egd_optax.core.population import Candidate, Population
from egd_optax.core.spec import CycleSpec
from egd_optax.factored.interpret import evaluate
from egd_optax.factored.leaf import Factored
from egd_optax.factored.uses import at_once, has_factors, reason_to_form, uses_of


def chunks_of(
    spec: CycleSpec, population: Population, fitness: Fitness
) -> tuple[Callable[..., Evaluated] | None, int]:
    """How members are evaluated that are not formed, None if they are; and how many at a time.

    Args:
        spec: says how, or leaves it to what `fitness` does.
        population: the members.
        fitness: of the leaves of a candidate.

    Raises:
        ValueError: they are to be factored on a mesh whose axes are explicit.
    """
    execution = spec.execution
    formed = None, execution.candidate_batch_size or 1
    if execution.evaluate == "formed" or not factored_blocks(population):
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


def factored_blocks(population: Population) -> tuple[int, ...]:
    """The blocks whose leaves are evaluated as the parent's and factors beside these."""
    layout = population.layout
    return tuple(
        at
        for at in layout.in_rows
        if has_factors(population.perturbation.noise, layout.blocks[at].like)
        and population.perturbation.stds[at].size == layout.blocks[at].many
    )


def factored_leaves(
    population: Population, candidate: Candidate, sign: jax.Array
) -> dict[int, Any]:
    """The leaves of a candidate by their positions; those with factors are not formed."""
    blocks, factored = population.layout.blocks, factored_blocks(population)
    leaves: dict[int, Any] = population.leaves(candidate, sign, without=factored)
    for at in factored:
        center = population.center_of(candidate, at)
        parts = blocks[at].read(candidate.rows)
        for index, position in enumerate(blocks[at].leaves):
            base = center[index]
            factors = population.perturbation.noise.factors(
                tuple(part[index] for part in parts), base
            )
            assert factors is not None  # narrows the type: the block has some
            scale = sign * population.perturbation.stds[at][index].reshape(())
            left, right = (scale * factors[0]).astype(base.dtype), factors[1].astype(base.dtype)
            leaves[position] = Factored(base, left, right, (position,))
    return dict(sorted(leaves.items()))
