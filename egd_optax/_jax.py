"""Names of JAX that are not among its stable ones, and their differences between its versions.

The rest of the package takes them from here, so that a release that moves one is mended in this
file. All are there in JAX 0.10.2, 0.11.2 and 0.12.0.1.
"""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend import source_info_util
import jax.extend.core
from jax.extend.core import Jaxpr, Literal, jaxpr_as_fun

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "Layout",
    "Literal",
    "as_where_traced",
    "bound",
    "buffer_callback",
    "custom_partitioning",
    "io_callback",
    "jaxpr_as_fun",
    "line_of",
    "operands_of_scan",
    "with_layout_constraint",
    "without_constants",
]

# A `Jaxpr` with the arrays that it closes over. In JAX 0.11.2 it is `Jaxpr` itself, of which this
# is an older name; in 0.12.0.1 the types leave the name out.
ClosedJaxpr: Any = getattr(jax.extend.core, "ClosedJaxpr", Jaxpr)


def without_constants(closed: Any) -> Any:
    """The function of a `ClosedJaxpr`, which holds none of the arrays that it closes over.

    Whoever keeps `closed.jaxpr` keeps the arrays too in JAX 0.11.2 and later, where it is `closed`.
    """
    jaxpr = closed.jaxpr
    return jaxpr.with_consts(()) if jaxpr is closed else jaxpr


def bound(primitive: Any, params: dict[str, Any], arrays: Sequence[Any]) -> list[Any]:
    """The results of a primitive for arrays."""
    results = primitive.bind(*arrays, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


def operands_of_scan(
    params: Any, operands: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The constants of a scan, its carry, and the arrays that it scans over."""
    if "ft_in" in params:  # JAX 0.11.2 and later
        groups = params["ft_in"].update(operands).unpack()
        consts, carry, xs = (list(group.vals) for group in groups)
        return consts, carry, xs
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    return operands[:first], operands[first:last], operands[last:]


@contextlib.contextmanager
def as_where_traced(equation: Any) -> Iterator[None]:
    """Errors and profiles name the user's line; mesh and memory are those of the trace."""
    source = equation.source_info
    names = source_info_util.current_name_stack() + source.name_stack
    with (
        source_info_util.user_context(source.traceback, name_stack=names),
        equation.ctx.manager,
    ):
        yield


def line_of(equation: Any) -> str:
    """The line of the user's program that an equation comes from."""
    return source_info_util.summarize(equation.source_info)
