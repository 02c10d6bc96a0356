"""Which leaves of a member stay factored in a `value_fn`, and where others are formed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax import _checks
from egd_optax.base.arguments import taken_by
from egd_optax.base.leaves import mutating_leaves
from egd_optax.factored.leaf import Factored
from egd_optax.factored.uses import Use, at_once, reason_to_form, rows_of, uses_of
from egd_optax.noise.interface import Noise, has_factors
from egd_optax.noise.low_rank import low_rank


class ExplainedLeaf(NamedTuple):
    """How a leaf of a member is evaluated.

    Attributes:
        path: its place in the parameters, as `jax.tree_util.keystr` writes it.
        shape: its shape.
        dtype: its dtype.
        size: how many entries it has.
        evaluated: "factored"; or "formed", if an operation that uses it has no rule. Or "in full",
            if its noise has no factors. Or "fixed", if it does not mutate.
        uses: the places that use it up, in the order of the program. Each use has the `leaves`
            that it is made of, by their positions, and the `primitive` and the line (`where`)
            that use it. It says whether the leaf is `formed` there, and its `shape`, `dtype` and
            `size` there. `rows` is the number of rows that multiply it for one member.

    Example:
        >>> import jax.numpy as jnp
        >>> from egd_optax.factored import explain
        >>> (leaf,) = explain(lambda w: jnp.sum(jnp.ones((8, 64)) @ w), jnp.ones((64, 32))).leaves
        >>> leaf.evaluated, leaf.shape, [use.primitive for use in leaf.uses]
        ('factored', (64, 32), ['dot_general'])
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    evaluated: str
    uses: tuple[Use, ...]


class Explanation(NamedTuple):
    """How members are evaluated; printed as a table.

    Attributes:
        leaves: of the parameters.
        rows: how many rows a member multiplies its leaves with, on average over their entries.
        members_at_once: how many factored members are evaluated at a time if
            `candidate_batch_size` is None, or all of them if they are fewer.
        reason_to_form: why `evaluate="auto"` forms the members, None if it does not.

    Example:
        >>> import jax.numpy as jnp
        >>> from egd_optax.factored import explain
        >>> explanation = explain(lambda w: jnp.sum(jnp.ones((8, 64)) @ w), jnp.ones((64, 32)))
        >>> explanation.rows, explanation.members_at_once, explanation.reason_to_form
        (8, 256, None)
    """

    leaves: tuple[ExplainedLeaf, ...]
    rows: int
    members_at_once: int
    reason_to_form: str | None

    def __str__(self) -> str:
        """The table, and what `evaluate="auto"` does."""
        lines = [("leaf", "shape", "dtype", "entries", "evaluated", "where it is formed")]
        for leaf in self.leaves:
            formed = [use for use in leaf.uses if use.formed]
            where = ", ".join(f"{use.primitive} at {use.where or '?'}" for use in formed)
            shape = " x ".join(map(str, leaf.shape))
            lines.append((leaf.path, shape, str(leaf.dtype), str(leaf.size), leaf.evaluated, where))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        does = (
            f"forms members: {self.reason_to_form}"
            if self.reason_to_form
            else f"evaluates them factored, {self.members_at_once} at a time"
        )
        return "\n".join((*table, f'evaluate="auto" {does}; {self.rows} rows a member.'))


def explain(
    value_fn: Callable[..., Any],
    params: optax.Params,
    *,
    noise: Noise | None = None,
    mutable: object = None,
    **extra_args: Any,
) -> Explanation:
    """Tells which leaves of a member of low-rank noise stay factored, and where others are formed.

    Nothing is computed: `value_fn` is traced.

    Args:
        value_fn: the fitness, as passed to `update`.
        params: pytree of arrays or `jax.ShapeDtypeStruct`.
        noise: of low rank; None for `noise.low_rank()`.
        mutable: as an argument of `evolve`.
        **extra_args: as passed to `update`, for those that `value_fn` takes.

    Returns:
        The leaves and what becomes of them; `print` shows a table.

    Raises:
        TypeError: `noise` is no noise.
        ValueError: `noise` is not of low rank, or `mutable` fits no leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from egd_optax.factored import explain
        >>> params = {"w": jnp.ones((64, 32)), "rounded": jnp.ones((32, 16)), "b": jnp.ones(16)}
        >>> def value_fn(params, x):
        ...   hidden = jnp.tanh(x @ params["w"])
        ...   return jnp.mean((hidden @ jnp.round(params["rounded"]) + params["b"]) ** 2)
        >>> explanation = explain(value_fn, params, x=jnp.ones((8, 64)))
        >>> [(leaf.path, leaf.evaluated) for leaf in explanation.leaves]
        [("['b']", 'in full'), ("['rounded']", 'formed'), ("['w']", 'factored')]
        >>> explanation.reason_to_form
        '512 of 2576 entries would be formed all the same'
    """
    noise = low_rank() if noise is None else noise
    _checks.check_operator("noise", noise, Noise, "write `noise.low_rank()`")
    _checks.check_evaluate("factored", noise)
    mutating = mutating_leaves(params, mutable)
    flat, treedef = jax.tree.flatten_with_path(params)
    structs = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for _, leaf in flat]

    def carried(at: int) -> Any:
        leaf: Any = structs[at]
        if at not in mutating or not has_factors(noise, leaf):
            return leaf
        parts = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in noise.normals(leaf))
        left, right = jax.eval_shape(lambda *parts: noise.factors(parts, leaf), *parts)
        return Factored(leaf, left, right, (at,))

    leaves = tuple(map(carried, range(len(structs))))
    kwargs = taken_by(value_fn, extra_args, {"generation": 0, "base_state": None})

    def fitness(leaves: Any) -> Any:
        return value_fn(jax.tree.unflatten(treedef, leaves), **kwargs)

    uses = uses_of(fitness, leaves)

    def explained(at: int) -> ExplainedLeaf:
        own = tuple(use for use in uses if at in use.leaves)
        evaluated = "factored"
        if at not in mutating:
            evaluated = "fixed"
        elif not isinstance(leaves[at], Factored):
            evaluated = "in full"
        elif any(use.formed for use in own):
            evaluated = "formed"
        leaf = structs[at]
        path = jax.tree_util.keystr(flat[at][0])
        return ExplainedLeaf(path, leaf.shape, leaf.dtype, leaf.size, evaluated, own)

    return Explanation(
        leaves=tuple(map(explained, range(len(structs)))),
        rows=rows_of(uses),
        members_at_once=at_once(uses),
        reason_to_form=reason_to_form(uses, fitness, leaves),
    )
