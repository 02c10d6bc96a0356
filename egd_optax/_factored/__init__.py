"""Evaluates members of low-rank noise without forming them, on models nobody rewrote.

`leaf` is what stands for a leaf, `interpret` runs a traced function on such leaves, and the rules
say what an operation does with them: `structure` and `indexing` what rearranges an array,
`products` what multiplies with it, `calls` what holds functions.
"""

from egd_optax._factored import calls, indexing, products, structure  # noqa: F401  # their rules
from egd_optax._factored.interpret import (
    Equation,
    Interpreter,
    Rule,
    Step,
    evaluate,
    is_jaxpr,
    primitives_of,
    rule,
)
from egd_optax._factored.leaf import Factored, base_of, formed, is_factored

__all__ = [
    "Equation",
    "Factored",
    "Interpreter",
    "Rule",
    "Step",
    "base_of",
    "evaluate",
    "formed",
    "is_factored",
    "is_jaxpr",
    "primitives_of",
    "rule",
]
