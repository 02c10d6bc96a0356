"""Evaluate: the fitness of a member, forward only; lower is better."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._cycle.parent import Parent
from egd_optax._cycle.spec import Leaves
from egd_optax.execution import Execution

Fitness = Callable[[Leaves], jax.Array]


def fitness_of(
    value_fn: Callable[..., Any],
    parent: Parent,
    *,
    kwargs: Mapping[str, Any],
    execution: Execution,
) -> Fitness:
    """Prepares the fitness function of a generation; nothing is evaluated yet.

    Args:
        value_fn: maps parameters to a real scalar of at least float32; never
            differentiated.
        parent: what the members are made around, for the leaves that do not mutate.
        kwargs: what `value_fn` takes beside parameters.
        execution: names the mapped axes that the fitness is averaged over.

    Returns:
        A function from the mutating leaves of a member to its fitness, `[]` of
        `fitness_dtype()`, +inf where it is NaN or infinite. Jitted: the member loop and
        the child share one trace of `value_fn`.

    Raises:
        ValueError: one of the axes is not mapped, or a mapped axis is not named.
    """
    _check_axes(execution)
    axis_names = execution.axis_names

    def fitness(genome: Leaves) -> jax.Array:
        value = as_fitness(value_fn(parent.with_genome(genome), **kwargs))
        if axis_names:
            value = lax.pmean(value, axis_names)
        _check_replicas(value, execution)
        # `lax.top_k` ranks a negative zero before the zero that it is equal to everywhere else.
        value = jnp.where(value == 0, jnp.zeros_like(value), value)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    return jax.jit(fitness)


def _check_axes(execution: Execution) -> None:
    """The axes that fitness is averaged over are mapped, and no other axis is forgotten."""
    for name in execution.axis_names:
        if bound_axis_size(name) is None:
            raise ValueError(
                f"`axis_name` must name a mapped axis, got {name!r} outside of any `jax.shard_map` "
                "or `jax.pmap` over it. Leave it out in a plain `jax.jit`: there a sharded batch "
                "is averaged as a whole."
            )
    for name in _others(execution):
        # Along an axis that `jax.pmap` made up nothing can be averaged, gradients neither.
        if execution.axis_name is None and not _is_tracked(name) and not name.startswith("_"):
            raise ValueError(
                "`axis_name` must name the mapped axes, got None inside of `jax.shard_map` or "
                f"`jax.pmap` over {name!r}: replicas whose fitness differs would drift apart. "
                f'Pass `Execution(axis_name="{name}")` to average it, or `axis_name=()` if each '
                "device has a model of its own, or the same fitness in any case."
            )


def _check_replicas(value: jax.Array, execution: Execution) -> None:
    """Where JAX keeps track of what varies over an axis, replicas have the same fitness."""
    for name in _others(execution):
        if _is_tracked(name) and _varies(value, name):
            raise ValueError(
                f"`axis_name` must name the mapped axes, got {execution.axis_name!r} inside of "
                f"`jax.shard_map` over {name!r}, along which fitness varies: replicas would drift "
                f'apart. Pass `Execution(axis_name="{name}")` to average it, or, if each device '
                "has a model of its own, `axis_name=()` and `jax.shard_map(..., check_vma=False)`."
            )


def _others(execution: Execution) -> list[str]:
    """The axes of `jax.shard_map` and `jax.pmap` that an execution does not name."""
    named = {*execution.axis_names, execution.population_axis}
    return [name for name in jax.sharding.get_abstract_mesh().manual_axes if name not in named]


def _is_tracked(name: str) -> bool:
    """Whether JAX keeps track of what varies over an axis: `check_vma` of `jax.shard_map`."""
    return bool(jax.typeof(lax.axis_index(name)) != jax.typeof(jnp.int32(0)))


def _varies(value: jax.Array, name: str) -> bool:
    try:
        lax.pcast(value, name, to="varying")
    except ValueError:  # it does already
        return True
    return False


def bound_axis_size(name: str) -> int | None:
    """The size of a mapped axis, None outside of any `shard_map`, `pmap` or `vmap` over it."""
    try:
        return lax.axis_size(name)
    except NameError:
        return None


def fitness_dtype() -> jnp.dtype:
    """Dtype of fitness and weights: float32, or float64 where x64 is enabled."""
    return jnp.result_type(float)


def as_fitness(value: Any) -> jax.Array:
    """What `value_fn` returned, `[]` of `fitness_dtype()`; raises where it is no real scalar."""
    if not isinstance(
        value, (jax.Array, np.ndarray, np.number, np.bool_, bool, int, float, complex)
    ):
        raise TypeError(
            f"`value_fn` must return one scalar, got {value!r}: of a loss with auxiliary "
            "outputs return the loss alone, `value_fn=lambda params: loss_fn(params)[0]`."
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
