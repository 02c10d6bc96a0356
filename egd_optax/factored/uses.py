"""Finds the uses of factored leaves in a traced function, and whether factors are faster."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax

from egd_optax.backend.memory import platform
from egd_optax.factored.calls import CALLS
from egd_optax.factored.interpret import Step, evaluate, primitives_of
from egd_optax.factored.leaf import base_of, is_factored

# Members at a time have so many rows that a product with the base is fast: more only take more
# memory, and on a CPU leave its caches. And so many members are enough for small networks.
_ROWS = {"cpu": 2048, "other": 16384}
_MEMBERS = 256
# At most this part of the parameters may be in leaves that are formed all the same, for as many
# members at a time.
_FORMED = 0.02
# Operations that are better done for one member after the other, if nobody asked for several at a
# time. A callback may take no batch. Both branches would run, and all members as long as the
# longest. Batched LAPACK calls are slow, and can deadlock on CPU.
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


class Use(NamedTuple):
    """One place where a leaf, or what was made of it, is used up.

    Attributes:
        leaves: the positions of the leaves that it is made of.
        primitive: the operation that uses it, by its name in JAX.
        where: the line of the program.
        formed: whether it has to be formed there, for each member.
        shape: its shape there.
        dtype: its dtype there.
        rows: how many rows it is multiplied with for one member; 0 if it is no product.
    """

    leaves: tuple[int, ...]
    primitive: str
    where: str
    formed: bool
    shape: tuple[int, ...]
    dtype: Any
    rows: int

    @property
    def size(self) -> int:
        """How many entries it has there."""
        return math.prod(self.shape)


def uses_of(fn: Callable[..., Any], *args: Any) -> tuple[Use, ...]:
    """The uses of `Factored` leaves among the arguments, in the order of the program.

    Args:
        fn: maps pytrees of arrays to a pytree of arrays.
        *args: pytrees of `jax.ShapeDtypeStruct` or arrays, and `Factored` of either.
    """
    uses: list[Use] = []

    def watch(step: Step) -> None:
        name = step.equation.primitive.name
        passed_on = name in CALLS or any(map(is_factored, step.results))
        if passed_on and not step.formed:
            return
        leaf = step.leaf
        rows = 0 if step.formed else _rows(step)
        uses.append(
            Use(leaf.origins, name, step.equation.where, step.formed, leaf.shape, leaf.dtype, rows)
        )

    jax.eval_shape(lambda *args: evaluate(fn, *args, watch=watch), *args)
    return tuple(uses)


def _rows(step: Step) -> int:
    """How many rows a product multiplies the leaf with."""
    name, params, leaf = step.equation.primitive.name, step.equation.params, step.leaf
    results: int = math.prod(step.results[0].shape)
    if name == "conv_general_dilated":
        outputs: int = leaf.shape[params["dimension_numbers"].rhs_spec[0]]
        return results // outputs
    if name != "dot_general":
        return 0
    axes = params["dimension_numbers"][0][step.operand]
    summed: int = math.prod(leaf.shape[axis] for axis in axes)
    size: int = leaf.size
    return results * summed // size


def reason_to_form(
    uses: tuple[Use, ...], fitness: Callable[..., Any], leaves: Any, *args: Any
) -> str | None:
    """Why members are evaluated faster formed than factored, None if they are not.

    Args:
        uses: of the leaves.
        fitness: of the mutating leaves of a member.
        leaves: a pytree of those, `Factored` if they have factors. Shapes and dtypes suffice.
        *args: the other arguments of `fitness`.
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
