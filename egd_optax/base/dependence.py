"""Finds which results of a function depend on which arguments, from its traced program.

The base optimizer is a black box, but the library must know two things. Some leaves it never moves,
whatever the gradients are. Some parts of its state start the same, whatever the parameters are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from egd_optax._jax import ClosedJaxpr, Literal
from egd_optax.base.arguments import NUMBERS, arrays_of
from egd_optax.base.leaves import aligned, flatten


class _Fact(NamedTuple):
    """The known facts of an array.

    Attributes:
        depends: whether it can depend on the argument in question.
        zero: whether it is zero everywhere.
    """

    depends: bool
    zero: bool


# Operations whose result is zero if their operand is.
_KEEPS_ZEROS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "neg", "reshape", "sharding_constraint"}
)


def depends_on(fn: Callable[..., Any], of: Any, *others: Any) -> Any:
    """Which arrays that a function returns can depend on its first argument.

    Args:
        fn: maps pytrees of arrays to a pytree of arrays; traced, not run.
        of: the argument in question.
        *others: the other ones.

    Returns:
        A pytree of bools, like the result of `fn`. If the argument chooses a branch, the results
        depend on it, unless all branches return zeros.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(of, *others)
    asked = len(jax.tree.leaves(of))
    rest = len(closed.jaxpr.invars) - asked
    facts = [_Fact(True, False)] * asked + [_Fact(False, False)] * rest
    found = _of_program(closed, facts)
    return jax.tree.unflatten(jax.tree.structure(shape), [fact.depends for fact in found])


def _of_program(program: Any, arguments: Sequence[_Fact]) -> list[_Fact]:
    """The facts of what a program returns, from those of its arguments."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update((const, _Fact(False, False)) for const in jaxpr.constvars)

    def fact(var: Any) -> _Fact:
        if isinstance(var, Literal):
            return _Fact(False, bool(np.all(var.val == 0)))
        found: _Fact = known[var]
        return found

    for equation in jaxpr.eqns:
        found = _of_equation(equation, list(map(fact, equation.invars)))
        known.update(zip(equation.outvars, found, strict=True))
    return list(map(fact, jaxpr.outvars))


def _of_equation(equation: Any, operands: list[_Fact]) -> list[_Fact]:
    """The facts of what an operation returns."""
    name = equation.primitive.name
    if name == "cond":
        chosen_by, *rest = operands
        branches = [_of_program(branch, rest) for branch in equation.params["branches"]]
        return [_of_either(chosen_by, outcomes) for outcomes in zip(*branches, strict=True)]
    if name not in ("while", "scan"):  # these carry something from trip to trip
        for inner in map(equation.params.get, ("jaxpr", "call_jaxpr")):
            if inner is not None:
                return _of_program(inner, operands)
    any_depends = any(operand.depends for operand in operands)
    if name == "select_n":
        any_zero = all(operand.zero for operand in operands[1:])
    else:
        any_zero = name in _KEEPS_ZEROS and operands[0].zero
    return [_Fact(any_depends and not any_zero, any_zero)] * len(equation.outvars)


def _of_either(chosen_by: _Fact, outcomes: Sequence[_Fact]) -> _Fact:
    """The fact of one of several outcomes."""
    zero = all(outcome.zero for outcome in outcomes)
    depends = chosen_by.depends or any(outcome.depends for outcome in outcomes)
    return _Fact(depends and not zero, zero)


class Frozen:
    """The leaves that one base optimizer freezes, found once for arguments of one kind.

    Attributes:
        known: the positions of the leaves that it moves, by the types of all arguments.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.known: dict[Any, frozenset[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process: nothing that was found in this one."""
        return vars(Frozen())

    def moving(
        self,
        base: optax.GradientTransformationExtraArgs,
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        args: Mapping[str, Any],
    ) -> frozenset[int]:
        """Which leaves the base can move.

        Args:
            base: the base optimizer; traced, not run.
            grads: the gradients.
            state: of the base before the step.
            params: the parameters.
            args: the extra arguments of the base.

        Returns:
            The positions of the leaves whose update can depend on anything but the parameters. All
            positions if no update can: the base then leaves the parameters to the cycles, and
            freezes none.
        """
        own, with_own = arrays_of(params, NUMBERS)
        learned, with_learned = arrays_of((grads, state), NUMBERS)
        extra, with_extra = arrays_of(args)

        def updates_of(asked: list[list[Any]], own: list[Any]) -> optax.Updates:
            learned, extra = asked
            return base.update(*with_learned(learned), with_own(own), **with_extra(extra))[0]

        kind = (
            jax.tree.structure((grads, state, params, args)),
            tuple(map(jax.typeof, (*learned, *extra, *own))),
        )
        if kind not in self.known:
            try:
                moves = aligned(depends_on(updates_of, [learned, extra], own), params)
            except (
                jax.errors.ConcretizationTypeError,
                jax.errors.TracerArrayConversionError,
                jax.errors.TracerIntegerConversionError,
            ):  # it looks at numbers: outside of `jax.jit` a base may, and nothing is known of it
                moves = [True] * len(flatten(params)[0])
            moving = frozenset(at for at, one in enumerate(moves) if one)
            self.known[kind] = moving or frozenset(range(len(moves)))
        return self.known[kind]
