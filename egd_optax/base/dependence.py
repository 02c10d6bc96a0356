"""Finds which results of a function depend on which arguments, from its traced program.

The base optimizer is a black box, but the library must know two things. Some leaves it never moves,
whatever the gradients are. Some parts of its state start the same, whatever the parameters are.
Some are a point of the run: they start as the parameters, and stay.
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
        one_of: the positions of the arguments that it equals, unchanged; empty if there are none.
    """

    depends: bool
    zero: bool
    one_of: frozenset[int] = frozenset()


# Operations whose result is zero if their operand is.
_KEEPS_ZEROS = frozenset(
    {"broadcast_in_dim", "convert_element_type", "copy", "neg", "reshape", "sharding_constraint"}
)
# Operations that return their operand.
_KEEPS_ALL = frozenset({"convert_element_type", "copy", "sharding_constraint", "stop_gradient"})


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
    return jax.tree.map(lambda fact: fact.depends, _facts(fn, of, *others), is_leaf=_is_fact)


def _facts(fn: Callable[..., Any], of: Any, *others: Any) -> Any:
    """The facts of the arrays that a function returns, in its pytree."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(of, *others)
    asked = len(jax.tree.leaves(of))
    facts = [_Fact(at < asked, False, frozenset([at])) for at in range(len(closed.jaxpr.invars))]
    return jax.tree.unflatten(jax.tree.structure(shape), _of_program(closed, facts))


def _is_fact(node: Any) -> bool:
    return isinstance(node, _Fact)


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
        return [_of_either(operands[0], operands[1:])]
    zero = name in _KEEPS_ZEROS and operands[0].zero
    one_of = operands[0].one_of if name in _KEEPS_ALL else frozenset()
    return [_Fact(any_depends and not zero, zero, one_of)] * len(equation.outvars)


def _of_either(chosen_by: _Fact, outcomes: Sequence[_Fact]) -> _Fact:
    """The fact of one of several outcomes."""
    zero = all(outcome.zero for outcome in outcomes)
    depends = chosen_by.depends or any(outcome.depends for outcome in outcomes)
    known = all(outcome.one_of for outcome in outcomes)
    one_of = frozenset[int]().union(*(outcome.one_of for outcome in outcomes))
    return _Fact(depends and not zero, zero, one_of if known else frozenset())


class Traits(NamedTuple):
    """The traits of a base optimizer.

    Attributes:
        moving: the positions of the leaves that it can move, all if it moves none.
        moves: whether it can move any leaf in a way that the parameters do not decide.
        still: whether all its updates are zeros.
        anchors: a position for each leaf of its state: that of the leaf of the parameters that it
            started as, and stays. None if there is none.
    """

    moving: frozenset[int]
    moves: bool
    still: bool
    anchors: tuple[int | None, ...]


class BlackBox:
    """A base optimizer, whose traits are found once for arguments of one kind.

    Attributes:
        base: traced, not run.
        known: its traits, by the types of all arguments.
    """

    def __init__(self, base: optax.GradientTransformationExtraArgs) -> None:
        """Nothing is known yet."""
        self.base = base
        self.known: dict[Any, Traits] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state that is sent to another process: nothing that was found in this one."""
        return vars(BlackBox(self.base))

    def traits(
        self,
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        args: Mapping[str, Any],
    ) -> Traits:
        """The traits of the base with arguments like these.

        Args:
            grads: the gradients.
            state: of the base before the step.
            params: the parameters.
            args: the extra arguments of the base.

        Returns:
            The leaves that move are those whose update can depend on anything but the parameters.
            They are all if no update can: the base then leaves the parameters to the cycles, and
            freezes none. A base that looks at numbers runs outside of `jax.jit` alone. Nothing is
            known of that, so that it moves all leaves.
        """
        states, with_states = arrays_of(state, NUMBERS)
        learned, with_learned = arrays_of(grads, NUMBERS)
        own, with_own = arrays_of(params, NUMBERS)
        extra, with_extra = arrays_of(args)

        def step(asked: list[list[Any]], own: list[Any]) -> tuple[optax.Updates, list[Any]]:
            states, learned, extra = asked
            updates, after = self.base.update(
                with_learned(learned), with_states(states), with_own(own), **with_extra(extra)
            )
            return updates, arrays_of(after, NUMBERS)[0]

        kind = (
            jax.tree.structure((grads, state, params, args)),
            tuple(map(jax.typeof, (*states, *learned, *extra, *own))),
        )
        if kind not in self.known:
            # `init` saw the parameters without functions. These have no update either.
            leaves, treedef = flatten(params)
            steps = zip(leaves, aligned(grads, params), strict=True)
            started = [leaf if by is not None else None for leaf, by in steps]
            first, with_first = arrays_of(jax.tree.unflatten(treedef, started), NUMBERS)
            every = frozenset(range(len(leaves)))
            try:
                updates, after = _facts(step, [states, learned, extra], own)
                starts = _facts(
                    lambda own: arrays_of(self.base.init(with_first(own)), NUMBERS)[0], first
                )
            except (
                jax.errors.ConcretizationTypeError,
                jax.errors.TracerArrayConversionError,
                jax.errors.TracerIntegerConversionError,
            ):
                self.known[kind] = Traits(every, True, False, (None,) * len(states))
                return self.known[kind]
            moves = jax.tree.map(lambda fact: fact.depends, updates, is_leaf=_is_fact)
            still = all(fact.zero for fact in jax.tree.leaves(updates, is_leaf=_is_fact))
            moving = frozenset(at for at, one in enumerate(aligned(moves, params)) if one)
            # Which leaf an argument is of `init`, and of the step, whose first ones are others.
            of_init = [at for at, leaf in enumerate(started) if isinstance(leaf, NUMBERS)]
            of_step: list[int | None] = [None] * (len(states) + len(learned) + len(extra))
            of_step += [at for at, leaf in enumerate(leaves) if isinstance(leaf, NUMBERS)]
            pairs = zip(starts, after, strict=False)  # as long as the state, or it is another one's
            anchors = tuple(
                _anchor(at, [of_init[one] for one in start.one_of], stay.one_of, of_step)
                for at, (start, stay) in enumerate(pairs)
            )
            self.known[kind] = Traits(moving or every, bool(moving), still, anchors)
        return self.known[kind]


def _anchor(
    at: int, starts_as: list[int], stays: frozenset[int], of_step: list[int | None]
) -> int | None:
    """The leaf of the parameters that a leaf of the state starts as, if it then stays."""
    if len(starts_as) != 1 or at not in stays:
        return None
    # A base may take it from the parameters of the first step, too.
    others = {of_step[one] for one in stays if one != at}
    return starts_as[0] if others <= set(starts_as) else None
