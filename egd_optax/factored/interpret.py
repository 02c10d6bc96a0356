"""Runs a traced function on leaves that are never formed, equation by equation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from egd_optax._jax import ClosedJaxpr, Jaxpr, Literal, as_where_traced, bound, line_of
from egd_optax.factored.leaf import Factored, base_of, formed, is_factored

# Maps an equation and its operands to its results, or to None if it has no rule for these.
Rule = Callable[..., Sequence[Any] | None]

_RULES: dict[str, Rule] = {}


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Adds a rule for primitives of JAX, by their names; see `egd_optax.factored`."""
    if not primitives or not all(isinstance(name, str) for name in primitives):
        raise TypeError(
            f"`primitives` must be names of primitives, got {primitives!r}: write "
            '`@rule("cumsum")`, with the name as `jax.make_jaxpr` prints it.'
        )

    def add(fn: Rule) -> Rule:
        _RULES.update(dict.fromkeys(primitives, fn))
        return fn

    return add


class Step(NamedTuple):
    """The record of an equation that got a factored leaf.

    Attributes:
        equation: the equation.
        leaf: the leaf.
        operand: the position of the leaf among the operands.
        formed: whether the equation had to form the leaf.
        results: the results of the equation. Empty if it holds functions and forms the leaf.
    """

    equation: "Equation"
    leaf: Factored
    operand: int
    formed: bool
    results: Sequence[Any]


class Equation(NamedTuple):
    """An equation of a traced function, as a rule sees it.

    Attributes:
        primitive: the operation.
        params: its parameters, by the names that `jax.make_jaxpr` prints.
        where: the line of the user's program that it comes from.
        interpreter: runs functions that it holds.
    """

    primitive: Any
    params: Mapping[str, Any]
    where: str
    interpreter: "Interpreter"

    def bind(self, *arrays: Any, **changes: Any) -> list[Any]:
        """Its results for arrays, with some of its parameters changed."""
        return bound(self.primitive, {**self.params, **changes}, arrays)

    def inside(self, jaxpr: Any, operands: Sequence[Any]) -> list[Any]:
        """Runs a function that it holds; the results may be `Factored`."""
        consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        open_jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        return self.interpreter.run(open_jaxpr, consts, operands)

    def formed(self, value: Any) -> Any:
        """Forms a value, if a function that the equation holds can take nothing else."""
        if is_factored(value) and self.interpreter.watch is not None:
            self.interpreter.watch(Step(self, value, 0, True, ()))
        return formed(value)


class Interpreter(NamedTuple):
    """Runs traced functions.

    Attributes:
        watch: called with each `Step`, if it is not None.
    """

    watch: Callable[[Step], None] | None = None

    def run(self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """Runs a function.

        Args:
            jaxpr: the open jaxpr of it.
            consts: the arrays that it closes over.
            operands: arrays; any may be `Factored`.

        Returns:
            Its results; any may be `Factored`.
        """
        known: dict[Any, Any] = {}

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else known[var]

        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, operands, strict=True))
        for eqn in jaxpr.eqns:
            with as_where_traced(eqn):
                results = self._apply(eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        where = line_of(eqn) if self.watch is not None else ""
        equation = Equation(eqn.primitive, eqn.params, where, self)
        leaves = [at for at, operand in enumerate(operands) if is_factored(operand)]
        found = _RULES.get(eqn.primitive.name)
        results = found(equation, *operands) if leaves and found else None
        forms = results is None
        if results is None:
            results = equation.bind(*map(formed, operands))
        # A row of a matrix has fewer entries than its factors.
        results = [formed(one) if is_factored(one) and one.is_small else one for one in results]
        if self.watch is not None:
            for at in leaves:
                self.watch(Step(equation, operands[at], at, forms, results))
        return results


def primitives_of(jaxpr: Any) -> frozenset[str]:
    """The names of all primitives in a traced function, and in what it holds."""
    names: set[str] = set()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        # A choice between the programs of several platforms is no branch.
        if eqn.params.get("branches_platforms") is None:
            names.add(eqn.primitive.name)
        for param in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(param):
                names |= primitives_of(param)
    return frozenset(names)


def is_jaxpr(param: Any) -> bool:
    """Whether a parameter of an equation is a traced function."""
    return isinstance(param, ClosedJaxpr | Jaxpr)


def evaluate(
    fn: Callable[..., Any], *args: Any, watch: Callable[[Step], None] | None = None
) -> Any:
    """Returns `fn(*args)`; leaves of the arguments may be `Factored`. Traces `fn` once.

    Args:
        fn: maps pytrees of arrays to a pytree of arrays.
        *args: pytrees of arrays and `Factored`.
        watch: called with each `Step`, if it is not None.
    """
    operands, treedef = jax.tree.flatten(args, is_leaf=is_factored)
    operands = [one.varying() if is_factored(one) else one for one in operands]
    bases = jax.tree.unflatten(treedef, list(map(base_of, operands)))
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*bases)
    results = Interpreter(watch).run(closed.jaxpr, closed.consts, operands)
    return jax.tree.unflatten(jax.tree.structure(shape), list(map(formed, results)))
