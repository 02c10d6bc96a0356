"""Rules of what holds functions: they are run on the same leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from egd_optax._jax import operands_of_scan
from egd_optax.factored.interpret import Equation, rule
from egd_optax.factored.leaf import Factored, is_factored

_INLINED = (
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "remat2",
)
# They use nothing up themselves.
CALLS = frozenset((*_INLINED, "scan", "while", "cond"))


# Nothing is differentiated here, so a function with a custom derivative runs as the function alone.
@rule(*_INLINED)
def _call(equation: Equation, *operands: Any) -> Sequence[Any]:
    names = "jaxpr", "call_jaxpr", "fun_jaxpr"
    jaxpr = next(equation.params[name] for name in names if name in equation.params)
    return equation.inside(jaxpr, operands)


@rule("scan")
def _scan(equation: Equation, *operands: Any) -> Sequence[Any]:
    """Over stacked layers: a factor without the axis of the layers is the same in each."""
    params = equation.params
    consts, carry, xs = operands_of_scan(params, operands)
    leaves, treedef = jax.tree.flatten(list(xs))
    varies = _varying(xs)
    fixed = [leaf if on else leaf[0] for leaf, on in zip(leaves, varies, strict=True)]

    def body(carry: Sequence[Any], slices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        rest = iter(slices)
        own = [next(rest) if on else leaf for leaf, on in zip(fixed, varies, strict=True)]
        inner = jax.tree.unflatten(treedef, own)
        results = equation.inside(params["jaxpr"], [*consts, *carry, *inner])
        results = list(map(equation.formed, results))
        return results[: len(carry)], results[len(carry) :]

    carry, ys = lax.scan(
        body,
        list(map(equation.formed, carry)),
        [leaf for leaf, on in zip(leaves, varies, strict=True) if on],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _varying(xs: Sequence[Any]) -> list[bool]:
    """For each array of what is scanned whether it has the axis of the trips."""
    varies: list[bool] = []
    for x in xs:
        varies.append(True)
        if isinstance(x, Factored):
            varies.extend(factor.shape[0] == x.shape[0] for factor in x.factors)
    return varies


@rule("while")
def _while(equation: Equation, *operands: Any) -> Sequence[Any]:
    params = equation.params
    of_cond = params["cond_nconsts"]
    of_both = of_cond + params["body_nconsts"]

    def run(jaxpr: Any, consts: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
        return lambda carry: list(map(equation.formed, equation.inside(jaxpr, [*consts, *carry])))

    goes_on = run(params["cond_jaxpr"], operands[:of_cond])
    results: Sequence[Any] = lax.while_loop(
        lambda carry: goes_on(carry)[0],
        run(params["body_jaxpr"], operands[of_cond:of_both]),
        list(map(equation.formed, operands[of_both:])),
    )
    return results


@rule("cond")
def _cond(equation: Equation, index: Any, *operands: Any) -> Sequence[Any] | None:
    if is_factored(index):
        return None

    def branch(jaxpr: Any) -> Callable[[Sequence[Any]], list[Any]]:
        return lambda operands: list(map(equation.formed, equation.inside(jaxpr, operands)))

    branches = list(map(branch, equation.params["branches"]))
    results: Sequence[Any]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        results = lax.switch(index, branches, operands)
        return results
    # Of `lax.platform_dependent`: a branch for one platform may not be there for others.
    own = {name: fn for names, fn in zip(platforms, branches, strict=True) for name in names or ()}
    default = next((fn for names, fn in zip(platforms, branches, strict=True) if not names), None)
    results = lax.platform_dependent(operands, default=default, **own)
    return results
