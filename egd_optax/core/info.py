"""The arguments of a cycle, its results, and the scalars that it reports."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax.core import auxiliary
from egd_optax.core.auxiliary import Aux, Auxiliary
from egd_optax.core.fitness import fitness_dtype
from egd_optax.core.spec import StrategyState


class CycleInfo(NamedTuple):
    """A report of the latest cycle; every field but `aux` is a scalar array that can be logged.

    Fitness is float32, or float64 if x64 is enabled. A fitness that was not finite is
    +inf, or 3.39e38 with `jax_debug_infs`, which refuses infinities.
    Before the first cycle `cycle_index` is -1 and every fitness +inf. No name is one of
    `EvolveState` too, so that `optax.tree.get(state, name)` finds one value.

    Attributes:
        cycle_index: int32, from 0.
        parent_fitness: fitness of the base step's parameters, member 0, in the first
            generation. All fitness below is of the last one. +inf with `accept.always()` and
            antithetic pairs, which do not evaluate it.
        best_fitness: fitness of the best member, the parent included.
        mean_fitness: mean over the members of finite fitness.
        child_fitness: fitness of the recombined child; +inf with `accept.always()`, which does
            not evaluate it.
        accepted: bool, whether the parameters left the parent, in any generation.
        sigma: float like the fitness, the sigma that was used.
        evaluations: int32, evaluations of `value_fn` in the cycle. In each generation these are
            the population, the child, and the parent of antithetic pairs. `accept.always()` takes
            the child unseen, and spares the child and that parent. If members are not formed and
            `accept.best()` decides, the best member is evaluated once more, formed.
        update_norm: float like the fitness, how far a cycle moved the parameters. It is the root
            mean square of its part of the update, over that of the parameters. 0 if it moved none.
            Fine-tuning that moves far forgets.
        aux: the aux that `value_fn` returned, `Aux`; None without the argument `aux`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, population_size=8)
        >>> params = jnp.ones(3)
        >>> _, state = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> int(state.info.evaluations), bool(state.info.best_fitness <= state.info.parent_fitness)
        (9, True)
    """

    cycle_index: jax.Array
    parent_fitness: jax.Array
    best_fitness: jax.Array
    mean_fitness: jax.Array
    child_fitness: jax.Array
    accepted: jax.Array
    sigma: jax.Array
    evaluations: jax.Array
    update_norm: jax.Array
    aux: Aux | None = None


def info_like(aux: Auxiliary) -> Any:
    """A `CycleInfo` of the shapes and dtypes that a cycle reports."""
    whole, real = jnp.dtype(jnp.int32), fitness_dtype()
    dtypes = whole, real, real, real, real, jnp.dtype(jnp.bool_), real, whole, real
    scalars: Any = (jax.ShapeDtypeStruct((), dtype) for dtype in dtypes)
    return CycleInfo._make([*scalars, None if aux is None else Aux(aux, aux, aux, aux)])


def no_cycle_yet(aux: Auxiliary) -> CycleInfo:
    """The info before the first cycle; each leaf a buffer of its own, to be donated."""
    unknown = _largest() if jax.debug_infs.value else math.inf
    values = -1, unknown, unknown, unknown, unknown, False, 0.0, 0, 0.0
    pairs = zip(values, info_like(aux), strict=False)  # without the last field, `aux`
    scalars = [jnp.asarray(np.array(value, like.dtype)) for value, like in pairs]
    return CycleInfo._make([*scalars, auxiliary.nothing_kept(aux)])


def in_dtypes(info: CycleInfo, like: Any) -> CycleInfo:
    """An info in the dtypes of another: a step keeps the dtypes of the state."""

    def cast(scalar: jax.typing.ArrayLike, like: Any) -> jax.Array:
        scalar = jnp.asarray(scalar)
        if jax.debug_infs.value and jnp.issubdtype(scalar.dtype, jnp.floating):
            # JAX would else refuse the state of every step before the first cycle.
            scalar = jnp.minimum(scalar, jnp.asarray(_largest(), scalar.dtype))
        # A state that was made under x64 may have dtypes that do not exist without x64.
        dtype = jax.dtypes.canonicalize_dtype(like.dtype)
        return scalar if scalar.dtype == dtype else scalar.astype(dtype)

    cast_info: CycleInfo = jax.tree.map(cast, info, like)
    return cast_info


def _largest() -> float:
    """A finite number in place of infinity, if JAX refuses that; any float dtype has it."""
    return float(jnp.finfo(jnp.bfloat16).max)


def info_of(cycle: jax.Array, found: Any, jumped: jax.Array, aux: Aux | None) -> CycleInfo:
    """The report of a cycle from those of its generations, `[generations]`; without its norm."""
    return CycleInfo(
        cycle_index=cycle,
        parent_fitness=found.parent[0],
        best_fitness=found.best[-1],
        mean_fitness=found.mean[-1],
        child_fitness=found.child[-1],
        accepted=jumped,
        sigma=found.sigma[-1],
        evaluations=jnp.sum(found.evaluations, dtype=jnp.int32),
        update_norm=jnp.zeros_like(found.sigma[-1]),
        aux=aux,
    )


class Start(NamedTuple):
    """The state of a step before its cycle.

    Attributes:
        params: the parameters before the step.
        base_updates: the updates of the base optimizer.
        info: the report of the latest cycle.
        key_data: uint32 `[2]`, the key of the run.
        cycle: int32 `[]`, index of this cycle.
        strategy_state: the state of the strategy.
    """

    params: optax.Params
    base_updates: optax.Updates
    info: CycleInfo
    key_data: jax.Array
    cycle: jax.Array
    strategy_state: StrategyState


class Ran(NamedTuple):
    """The result of a cycle, or of a step without one.

    Attributes:
        updates: in the dtypes of the base updates.
        jumped: bool `[]`, whether they leave the base step.
        info: the report of the latest cycle.
        strategy_state: the state of the strategy.
    """

    updates: optax.Updates
    jumped: jax.Array
    info: CycleInfo
    strategy_state: StrategyState


class Generation(NamedTuple):
    """The report of a generation; scalars but for `aux`.

    Attributes:
        parent: fitness of its parent, +inf if it was not evaluated.
        best: fitness of its best member.
        mean: mean over its members of finite fitness, +inf if there is none.
        child: fitness of its child, +inf if it was not evaluated.
        accepted: bool, whether it left its parent.
        sigma: the sigma that was used.
        evaluations: int32, how often `value_fn` was evaluated.
        aux: the aux that `value_fn` returned, None if none.
    """

    parent: jax.Array
    best: jax.Array
    mean: jax.Array
    child: jax.Array
    accepted: jax.Array
    sigma: jax.Array
    evaluations: jax.Array
    aux: Aux | None


def finite_mean(fitness: jax.Array) -> jax.Array:
    """The mean over the finite ones, +inf if there is none."""
    finite = jnp.isfinite(fitness)
    count = jnp.sum(finite.astype(fitness.dtype))
    mean = jnp.sum(fitness, where=finite) / jnp.maximum(count, jnp.ones_like(count))
    return jnp.where(jnp.any(finite), mean, jnp.inf)
