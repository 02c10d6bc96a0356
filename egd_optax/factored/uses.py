"""What a function does with leaves that come factored, read off its trace: nothing is computed."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax

from egd_optax.factored.calls import CALLS
from egd_optax.factored.interpret import Step, evaluate
from egd_optax.factored.leaf import is_factored


class Use(NamedTuple):
    """One place where a leaf, or what was made of it, is used up.

    Attributes:
        leaves: the positions of the leaves that it is made of.
        primitive: what uses it, by its name in JAX.
        where: the line of the program.
        formed: whether it has to be formed there, for each member.
        shape: its shape there; likewise:
        dtype: its dtype.
        rows: how many rows it is multiplied with for one member; 0 where it is no product.
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
        *args: pytrees of `jax.ShapeDtypeStruct` or arrays, and `Factored` of such.
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
