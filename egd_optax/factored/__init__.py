"""Members of low-rank noise that are evaluated without being formed, and rules of your own.

A member W + A B^T is evaluated as x W + (x A) B^T. All members share the product with W, and no
W + A B^T takes memory. `value_fn` is any function of JAX. It is traced, and its operations are run
on a `Factored` in the place of each matrix. A rule defines the result of an operation on it. An
operation without a rule gets the matrix itself, which is formed for each member: the result is
right, and slower. `explain` tells where that happens.

There are rules for products of matrices, convolutions, sums and products with a number. Other
rules rearrange, cut, join and gather. Others run functions inside: `jax.jit`, `jax.checkpoint`,
`jax.lax.scan`, `while_loop`, `cond`, functions with a derivative of their own.

A rule of your own is a function of the equation and its operands. It returns the results, or None
if it has none for these. `each` does the same to the base and to either factor. A cumulative
sum, for example, is linear along its axis:

>>> import jax, jax.numpy as jnp
>>> from egd_optax import factored
>>> @factored.rule("cumsum")
... def cumsum(equation, leaf):
...   axis = equation.params["axis"]
...   owners = [factor for factor in (leaf.left, leaf.right) if factor.shape[axis] != 1]
...   if len(owners) != 1:  # a product of two is not linear in both
...     return None
...   return [leaf.each(lambda part: equation.bind(part)[0] if part.shape[axis] != 1 else part)]
>>> value_fn = lambda params: jnp.mean((jnp.ones((8, 64)) @ jnp.cumsum(params, 0)) ** 2)
>>> [leaf.evaluated for leaf in factored.explain(value_fn, jnp.ones((64, 32))).leaves]
['factored']

`equation.bind(*arrays, **changes)` returns the results of the operation on arrays, with some of its
parameters changed. `equation.params` are these, by the names that `jax.make_jaxpr` prints.

References:
    Sarkar et al., `Evolution Strategies at the Hyperscale
    <https://arxiv.org/abs/2511.16652>`_, 2025.
"""

from egd_optax.factored import calls, indexing, products, structure  # noqa: F401  # their rules
from egd_optax.factored.explanation import ExplainedLeaf, Explanation, explain
from egd_optax.factored.interpret import Equation, rule
from egd_optax.factored.leaf import Factored

__all__ = ["Equation", "ExplainedLeaf", "Explanation", "Factored", "explain", "rule"]
