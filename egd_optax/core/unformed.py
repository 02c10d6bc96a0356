"""Members that are evaluated without being formed: the parent's leaves, and factors beside them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax.backend.memory import platform
from egd_optax.core.auxiliary import Evaluated
from egd_optax.core.fitness import Fitness
from egd_optax.core.population import Candidate, Population
from egd_optax.core.spec import CycleSpec
from egd_optax.factored.interpret import evaluate, primitives_of
from egd_optax.factored.leaf import Factored, base_of, is_factored
from egd_optax.factored.uses import Use, uses_of
from egd_optax.noise import Noise

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


def has_factors(noise: Noise, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be evaluated as the parent's and factors beside it."""
    # Of a float of a few digits a sum of products is another number than what it rounds to.
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.finfo(leaf.dtype).bits < 16:
        return False
    if not noise.has_factors:
        return False
    parts = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in noise.normals(leaf))
    return jax.eval_shape(lambda *parts: noise.factors(parts, leaf), *parts) is not None


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


def reason_to_form(
    uses: tuple[Use, ...], fitness: Callable[..., Any], leaves: Any, *args: Any
) -> str | None:
    """Why members are evaluated faster formed than factored, None where they are not.

    Args:
        uses: of the leaves.
        fitness: of the mutating leaves of a member.
        leaves: a pytree of those, `Factored` where they have factors; shapes and dtypes do.
        *args: what else `fitness` takes.
    """
    closed = jax.make_jaxpr(fitness)(jax.tree.map(base_of, leaves, is_leaf=is_factored), *args)
    slow = _ONE_BY_ONE & primitives_of(closed)
    if slow:
        return f"`value_fn` holds {', '.join(sorted(slow))}, better done for one member at a time"
    formed: int = sum(use.size for use in uses if use.formed)
    every = jax.tree.leaves(leaves, is_leaf=is_factored)
    whole: int = sum(leaf.size for leaf in every)
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
