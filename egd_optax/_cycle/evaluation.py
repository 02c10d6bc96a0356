"""How the members of a generation are evaluated: formed or factored, and how many at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._cycle.fitness import OwnFitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Parent
from egd_optax._cycle.platform import platform
from egd_optax._cycle.spec import CycleSpec
from egd_optax._cycle.unformed import Unformed, unformed_of
from egd_optax.factored.interpret import primitives_of
from egd_optax.factored.leaf import base_of
from egd_optax.factored.uses import Use, uses_of

# Members at a time have so many rows that a product with the base is fast: more only take more
# memory, and on a CPU leave its caches. And so many members are enough for small networks.
_ROWS = {"cpu": 2048, "other": 16384}
_MEMBERS = 256
# Leaves that are formed all the same, for as many members at a time, are this part of the
# parameters at most.
_FORMED = 0.02
# What is better done for one member after the other, where nobody asked for several at a time: a
# callback may take no batch; both branches would run, and all members as long as the longest; and
# batched LAPACK calls are slow, and can deadlock on CPU.
_ONE_BY_ONE = frozenset(
    {
        "buffer_callback",
        "cholesky",
        "cond",
        "debug_callback",
        "debug_print",
        "eig",
        "eigh",
        "geqrf",
        "hessenberg",
        "householder_product",
        "io_callback",
        "lu",
        "pure_callback",
        "qr",
        "schur",
        "svd",
        "triangular_solve",
        "tridiagonal",
        "while",
    }
)


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
    counts = jax.ShapeDtypeStruct((), jnp.bool_)
    uses = uses_of(fitness, leaves, counts)
    if execution.evaluate == "auto" and reason_to_form(uses, fitness, leaves, counts):
        return forms
    return factored, unformed, execution.candidate_batch_size or at_once(uses)


def reason_to_form(
    uses: tuple[Use, ...], fitness: Callable[..., Any], leaves: Sequence[Any], *args: Any
) -> str | None:
    """Why members are evaluated faster formed than factored, None where they are not.

    Args:
        uses: of the leaves.
        fitness: of the mutating leaves of a member.
        leaves: those, `Factored` where they have factors; shapes and dtypes do.
        *args: what else `fitness` takes.
    """
    closed = jax.make_jaxpr(fitness)(list(map(base_of, leaves)), *args)
    slow = _ONE_BY_ONE & primitives_of(closed)
    if slow:
        return f"`value_fn` holds {', '.join(sorted(slow))}, better done for one member at a time"
    formed: int = sum(use.size for use in uses if use.formed)
    whole: int = sum(leaf.size for leaf in leaves)
    if formed > _FORMED * whole:
        return f"{formed} of {whole} entries would be formed all the same"
    return None


def rows_of(uses: tuple[Use, ...]) -> int:
    """How many rows a member multiplies its leaves with, on average over their entries."""
    products = [use for use in uses if use.rows]
    entries = sum(use.size for use in products)
    return sum(use.rows * use.size for use in products) // entries if entries else 1


def at_once(uses: tuple[Use, ...]) -> int:
    """How many members at a time have so many rows that a product is fast."""
    rows = _ROWS.get(platform(), _ROWS["other"])
    return min(max(1, rows // rows_of(uses)), _MEMBERS)
