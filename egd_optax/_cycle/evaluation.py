"""How the members of a generation are evaluated: formed or factored, and how many at a time."""

import jax
import jax.numpy as jnp

from egd_optax._cycle.fitness import OwnFitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Parent
from egd_optax._cycle.spec import CycleSpec
from egd_optax._cycle.unformed import Unformed, unformed_of
from egd_optax._factored.uses import Use, uses_of

# So many rows make a product with the base fast, and more only take more memory.
_ROWS = 2048
# Leaves that must be formed take this part of the parameters at most: a member that is formed
# by itself takes no copy of them.
_FORMED = 0.02


def evaluation_of(
    spec: CycleSpec, members: Members, parent: Parent, fitness: OwnFitness
) -> tuple[Members, Unformed | None, int]:
    """The members as they are to be evaluated.

    Args:
        spec: says how, or leaves it to what `fitness` does.
        members: the members, to be formed.
        parent: what they are around.
        fitness: of the mutating leaves of a member.

    Returns:
        The members, how they are evaluated if they are not formed, and how many at a time.

    Raises:
        ValueError: they are to be factored on a mesh whose axes are explicit.
    """
    execution = spec.execution
    forms = members, None, execution.candidate_batch_size or 1
    if execution.evaluate == "formed":
        return forms
    factored = members._replace(factored=True)
    if not any(factored.with_factors):
        return forms
    if any(jax.typeof(leaf).sharding.mesh.explicit_axes for leaf in members.genome.params):
        if execution.evaluate == "auto":
            return forms
        raise ValueError(
            '`evaluate="factored"` needs a mesh of automatic axes, got parameters on one of '
            "explicit axes: make it with `axis_types=(jax.sharding.AxisType.Auto, ...)`, or pass "
            '`evaluate="formed"`.'
        )
    unformed = unformed_of(factored, parent, fitness)
    if execution.evaluate == "factored" and execution.candidate_batch_size is not None:
        return factored, unformed, execution.candidate_batch_size
    leaves = jax.eval_shape(lambda: unformed.leaves(factored.drawn(jnp.int32(1))))
    uses = uses_of(fitness, leaves, jax.ShapeDtypeStruct((), jnp.bool_))
    size = sum(leaf.size for leaf in unformed.bases)
    if execution.evaluate == "auto" and not pays(uses, size):
        return forms
    return factored, unformed, execution.candidate_batch_size or _batch_size(uses, members)


def pays(uses: tuple[Use, ...], size: int) -> bool:
    """Whether members are evaluated faster factored than formed, by a rule that was measured.

    Args:
        uses: of the leaves with factors.
        size: how many parameters mutate.
    """
    return sum(use.size for use in uses if use.formed) <= _FORMED * size


def rows_of(uses: tuple[Use, ...]) -> int:
    """How many rows a member multiplies its leaves with, on average over their entries."""
    products = [use for use in uses if use.rows]
    entries = sum(use.size for use in products)
    return sum(use.rows * use.size for use in products) // entries if entries else 1


def _batch_size(uses: tuple[Use, ...], members: Members) -> int:
    """How many members at a time have so many rows that a product is fast."""
    many = min(max(1, _ROWS // rows_of(uses)), members.size - 1)
    return max(many, members.pair) // members.pair * members.pair
