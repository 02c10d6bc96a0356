"""Evaluate: the fitness of a member, forward only; lower is better."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._advice import advice_on_gaps, advice_on_tracers
from egd_optax._axes import check_replicas
from egd_optax.core.auxiliary import Auxiliary, Evaluated, split_off
from egd_optax.core.blocks import Blocks
from egd_optax.execution import Execution

_COUNTS: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("counts", default=None)


@contextlib.contextmanager
def counted(counts: jax.Array) -> Iterator[None]:
    """Traces `value_fn` for results that are used where `counts`, bool `[]`, holds."""
    token = _COUNTS.set(counts)
    try:
        yield
    finally:
        _COUNTS.reset(token)


def counts() -> jax.Array:
    """Whether the result of the evaluation that is traced is used, bool `[]`."""
    known = _COUNTS.get()
    return jnp.ones([], jnp.bool_) if known is None else known


# Maps the mutating leaves of a candidate, by their positions, and whether the result counts to
# `Evaluated`. Jitted: all that evaluate share one trace of `value_fn`.
Fitness = jax.stages.Wrapped


class Snapshot(NamedTuple):
    """The parameters after the base step.

    Attributes:
        blocks: the mutating leaves before the step, and their base updates.
        others: all leaves after the step, their shapes alone if they mutate; an
            `optax.MaskedNode` is a leaf.
        treedef: the structure of all leaves.
        positions: of the mutating leaves among all.
    """

    blocks: Blocks
    others: tuple[Any, ...]
    treedef: jax.tree_util.PyTreeDef
    positions: tuple[int, ...]

    def tree(self, leaves: Mapping[int, Any]) -> optax.Params:
        """Parameters, with other mutating leaves, by their positions among those that mutate."""
        whole = list(self.others)
        for at, leaf in leaves.items():
            whole[self.positions[at]] = leaf
        return jax.tree.unflatten(self.treedef, whole)

    def leaves_of(self, tree: optax.Params) -> tuple[jax.Array, ...]:
        """The leaves of what a noise reads, at the positions that mutate.

        Raises:
            ValueError: it is not a tree like the parameters.
        """
        try:
            leaves = self.treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                "`noise.reads` must return a pytree like the parameters, got "
                f"{jax.tree.structure(tree)} for {self.treedef}."
            ) from error
        return tuple(leaves[at] for at in self.positions)


def fitness_of(
    value_fn: Callable[..., Any],
    snapshot: Snapshot,
    *,
    kwargs: Mapping[str, Any],
    execution: Execution,
    aux: Auxiliary = None,
    reads: Callable[[Any], Any] | None = None,
) -> Fitness:
    """Prepares the fitness of candidates; nothing is evaluated yet.

    Args:
        value_fn: maps parameters to a real scalar of at least float32; never differentiated.
        snapshot: the parameters, for the leaves that do not mutate.
        kwargs: the other arguments of `value_fn`.
        execution: names the mapped axes over which the fitness is averaged.
        aux: shapes and dtypes of the aux that `value_fn` returns; None if it returns none.
        reads: see `Recombine.reads`; None for nothing.

    Returns:
        A function of the mutating leaves and of whether the result counts. Its fitness is `[]` of
        `fitness_dtype()`, +inf if it is NaN or infinite.

    Raises:
        ValueError: the fitness varies over a mapped axis that is not named.
    """
    axis_names = execution.axis_names

    def fitness(leaves: dict[int, Any], counts: jax.Array) -> Evaluated:
        params = snapshot.tree(leaves)
        with advice_on_tracers(), advice_on_gaps(params), counted(counts):
            found = as_evaluated(value_fn(params, **kwargs), aux)
        found = lax.stop_gradient(found)  # of what `value_fn` closes over
        if axis_names:
            found = jax.tree.map(lambda leaf: _over_replicas(leaf, axis_names), found)
        for leaf in jax.tree.leaves(found):
            check_replicas(leaf, execution)
        if aux is not None and reads is not None:
            found = found._replace(read=jax.tree.map(jnp.asarray, reads(found.aux)))
        # `lax.top_k` ranks a negative zero before the zero that it is equal to everywhere else.
        value = jnp.where(found.value == 0, jnp.zeros_like(found.value), found.value)
        return found._replace(value=jnp.where(jnp.isfinite(value), value, jnp.inf))

    return jax.jit(fitness)


def fitness_dtype() -> jnp.dtype:
    """Dtype of fitness and weights: float32, or float64 if x64 is enabled."""
    return jnp.result_type(float)


def as_evaluated(result: Any, aux: Auxiliary) -> Evaluated:
    """Splits the result of `value_fn`; raises an error if it does not fit `aux`.

    Args:
        result: a real scalar or, if `aux` is not None, a tuple (fitness, aux).
        aux: shapes and dtypes of the second part.
    """
    if aux is None:
        return Evaluated(as_fitness(result))
    value, leaves = split_off(
        result, aux, jnp.asarray, name="value_fn", casting="safe",
        advice="pass `aux=jax.eval_shape(value_fn, params)[1]`",
    )  # fmt: skip
    structure = jax.tree.structure(aux)
    dtypes = [like.dtype for like in jax.tree.leaves(aux)]
    return Evaluated(
        as_fitness(value), jax.tree.unflatten(structure, map(jnp.asarray, leaves, dtypes))
    )


def _over_replicas(leaf: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    """The mean of floats over devices, and the sum of integers, which are counts."""
    averaged = jnp.issubdtype(leaf.dtype, jnp.inexact)
    over: Callable[..., jax.Array] = lax.pmean if averaged else lax.psum
    return over(leaf, axis_names)


def as_fitness(value: Any) -> jax.Array:
    """The fitness that was returned, `[]` of `fitness_dtype()`; raises if it is no real scalar."""
    if not isinstance(
        value, (jax.Array, np.ndarray, np.number, np.bool_, bool, int, float, complex)
    ):
        raise TypeError(
            f"`value_fn` must return one scalar, got {value!r}: of a loss with auxiliary "
            "outputs return the loss alone, `value_fn=lambda params: loss_fn(params)[0]`, or say "
            "what they are like, `evolve(..., aux=jax.eval_shape(loss_fn, params)[1])`."
        )
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != ():
        raise ValueError(
            f"`value_fn` must return a scalar, got shape {shape}: reduce it, for example "
            "with `jnp.mean`."
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"`value_fn` must return a real scalar, got {dtype}: return its real part or "
            "its magnitude."
        )
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"`value_fn` must return at least float32, got {dtype}, in which different "
            "losses become equal: compute the loss in float32, for example from "
            "`logits.astype(jnp.float32)`."
        )
    return jnp.asarray(value, fitness_dtype())
