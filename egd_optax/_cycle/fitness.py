"""Evaluate: the fitness of a member, forward only; lower is better."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._advice import advice_on_gaps, advice_on_tracers, warn_of_constant
from egd_optax._cycle.auxiliary import Auxiliary, Evaluated, split_off
from egd_optax._cycle.axes import check_axes, check_replicas
from egd_optax._cycle.counted import counted
from egd_optax._cycle.parent import Parent
from egd_optax._cycle.spec import Leaves
from egd_optax.execution import Execution

# Maps the mutating leaves of a member, one by one, and whether the result counts to `Evaluated`.
OwnFitness = jax.stages.Wrapped


class Fitness(Protocol):
    """Maps the mutating leaves of a member to its fitness, and to what comes beside it."""

    def __call__(self, genome: Leaves, counts: jax.Array | None = None) -> Evaluated:
        """The fitness, `[]`; `counts`, bool `[]`, says whether it is used, None that it is."""


def own_fitness_of(
    value_fn: Callable[..., Any],
    parent: Parent,
    *,
    kwargs: Mapping[str, Any],
    execution: Execution,
    aux: Auxiliary = None,
) -> OwnFitness:
    """Prepares the fitness function of a generation; nothing is evaluated yet.

    Args:
        value_fn: maps parameters to a real scalar of at least float32; never
            differentiated.
        parent: what the members are made around, for the leaves that do not mutate.
        kwargs: what `value_fn` takes beside parameters.
        execution: names the mapped axes that the fitness is averaged over.
        aux: what `value_fn` returns beside the fitness is like this; None if nothing.

    Returns:
        A function from the mutating leaves of a member to `Evaluated`: the fitness is `[]` of
        `fitness_dtype()`, +inf where it is NaN or infinite. Jitted: all that evaluate share one
        trace of `value_fn`.

    Raises:
        ValueError: one of the axes is not mapped, or a mapped axis is not named.
    """
    check_axes(execution)
    axis_names = execution.axis_names

    def fitness(own: Leaves, counts: jax.Array) -> Evaluated:
        member = parent.with_own_leaves(own)
        with advice_on_tracers(), advice_on_gaps(member), counted(counts):
            found = as_evaluated(value_fn(member, **kwargs), aux)
        found = lax.stop_gradient(found)  # of what `value_fn` closes over
        if axis_names:
            found = jax.tree.map(lambda leaf: _over_replicas(leaf, axis_names), found)
        for leaf in jax.tree.leaves(found):
            check_replicas(leaf, execution)
        # `lax.top_k` ranks a negative zero before the zero that it is equal to everywhere else.
        value = jnp.where(found.value == 0, jnp.zeros_like(found.value), found.value)
        return found._replace(value=jnp.where(jnp.isfinite(value), value, jnp.inf))

    return jax.jit(fitness)


def fitness_of(own_fitness: OwnFitness, parent: Parent) -> Fitness:
    """The same function of the mutating leaves as they stand in a genome."""

    @jax.jit
    def jitted(genome: Leaves, counts: jax.Array) -> Evaluated:
        own = parent.own_leaves(genome)
        warn_of_constant(own_fitness.trace(own, counts).jaxpr, len(own))  # traced no more
        found: Evaluated = own_fitness(own, counts)
        return found

    def evaluate(genome: Leaves, counts: jax.Array | None = None) -> Evaluated:
        found: Evaluated = jitted(genome, jnp.ones([], jnp.bool_) if counts is None else counts)
        return found

    return evaluate


def fitness_dtype() -> jnp.dtype:
    """Dtype of fitness and weights: float32, or float64 where x64 is enabled."""
    return jnp.result_type(float)


def as_evaluated(result: Any, aux: Auxiliary) -> Evaluated:
    """What `value_fn` returned; raises where it is not what `aux` says.

    Args:
        result: a real scalar or, where `aux` is not None, a tuple of that and what comes beside it.
        aux: shapes and dtypes of that.
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
    """The mean over devices of what is measured, and the sum of what is counted."""
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
