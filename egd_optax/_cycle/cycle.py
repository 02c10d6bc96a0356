"""One evolution cycle: some generations around the parameters that the base step leads to."""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._advice import advice_on_value_fn
from egd_optax._cycle import auxiliary, xla
from egd_optax._cycle.auxiliary import Aux, Auxiliary
from egd_optax._cycle.constant import constant, following
from egd_optax._cycle.fitness import fitness_dtype
from egd_optax._cycle.generation import Outcome, run_generation
from egd_optax._cycle.members import cycle_key
from egd_optax._cycle.parent import (
    Genome,
    Parent,
    idle_updates,
    replaced,
    resume,
    snapshot,
)
from egd_optax._cycle.spec import CycleSpec, Leaves, Objectives, StrategyState


class CycleInfo(NamedTuple):
    """What the latest cycle did; every field but `aux` is a scalar array that can be logged.

    Fitness is float32, or float64 where x64 is enabled, and +inf stands for a fitness
    that was not finite; with `jax_debug_infs`, which refuses infinities, 3.39e38 does.
    Before the first cycle `cycle_index` is -1 and every fitness +inf. No name is one of
    `EvolveState` too, so that `optax.tree.get(state, name)` finds one value.

    Attributes:
        cycle_index: int32, from 0.
        parent_fitness: fitness of the base step's parameters, member 0; in the first
            generation, where there are several. All below are of the last one. +inf with
            `accept.always()` and antithetic pairs, where it is not evaluated.
        best_fitness: fitness of the best member, the parent included.
        mean_fitness: mean over the members of finite fitness.
        child_fitness: fitness of the recombined child; +inf with `accept.always()`, where it is
            not evaluated.
        accepted: bool, whether the parameters left the parent, in any generation.
        sigma: float like the fitness, the sigma that was used.
        evaluations: int32, evaluations of `value_fn` in the cycle: in each generation
            the population and, unless `accept.always()` takes the child unseen, the parent of
            antithetic pairs and the child; where members are not formed and `accept.best()`
            decides, the best one once more, formed.
        aux: what `value_fn` returned beside the fitness, `Aux`; None without the argument `aux`.

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
    aux: Aux | None = None


def info_like(aux: Auxiliary) -> Any:
    """A `CycleInfo` of the shapes and dtypes in which a cycle tells what it did."""
    whole, real = jnp.dtype(jnp.int32), fitness_dtype()
    dtypes = whole, real, real, real, real, jnp.dtype(jnp.bool_), real, whole
    scalars: Any = (jax.ShapeDtypeStruct((), dtype) for dtype in dtypes)
    return CycleInfo._make([*scalars, None if aux is None else Aux(aux, aux, aux, aux)])


def no_cycle_yet(aux: Auxiliary) -> CycleInfo:
    """The info before the first cycle; each leaf a buffer of its own, to be donated."""
    unknown = _largest() if jax.debug_infs.value else math.inf
    values = -1, unknown, unknown, unknown, unknown, False, 0.0, 0
    pairs = zip(values, info_like(aux), strict=False)  # of `aux` nothing is known
    scalars = [jnp.asarray(np.array(value, like.dtype)) for value, like in pairs]
    return CycleInfo._make([*scalars, auxiliary.nothing_kept(aux)])


def in_dtypes(info: CycleInfo, like: Any) -> CycleInfo:
    """An info in the dtypes of another: a step returns the state in those that it came in."""

    def cast(scalar: jax.typing.ArrayLike, like: Any) -> jax.Array:
        scalar = jnp.asarray(scalar)
        if jax.debug_infs.value and jnp.issubdtype(scalar.dtype, jnp.floating):
            # Else JAX would refuse the state of every step before the first cycle.
            scalar = jnp.minimum(scalar, jnp.asarray(_largest(), scalar.dtype))
        # Made under x64, a state may have dtypes that are not to be had without.
        dtype = jax.dtypes.canonicalize_dtype(like.dtype)
        return scalar if scalar.dtype == dtype else scalar.astype(dtype)

    cast_info: CycleInfo = jax.tree.map(cast, info, like)
    return cast_info


def _largest() -> float:
    """What stands for infinity where JAX refuses that: a number that any float dtype of it has."""
    return float(jnp.finfo(jnp.bfloat16).max)


# The mutating leaves that a cycle chose, whether they left the parent, what it did, and what the
# strategy keeps.
_Evolved = tuple[Leaves, jax.Array, CycleInfo, StrategyState]


class _Step(NamedTuple):
    """Where a step leads.

    One buffer a leaf holds either outcome: a step without a cycle passes its updates
    through in place.

    Attributes:
        jumped: bool `[]`, whether a cycle left the base step.
        leaves: of the leaves that mutate what the cycle chose if `jumped`, else their base
            updates.
        info: what the latest cycle did.
        strategy_state: what the strategy keeps.
    """

    jumped: jax.Array
    leaves: Leaves
    info: CycleInfo
    strategy_state: StrategyState


def run_cycle_if(
    due: jax.Array,
    spec: CycleSpec,
    mutating: tuple[int, ...],
    objectives: Objectives,
    *,
    params: optax.Params,
    base_updates: optax.Updates,
    info: CycleInfo,
    key_data: jax.Array,
    cycle: jax.Array,
    strategy_state: StrategyState,
) -> tuple[optax.Updates, jax.Array, CycleInfo, StrategyState]:
    """Runs a cycle around the parameters that the base step leads to, where one is due.

    Args:
        due: bool `[]`.
        spec: what to do.
        mutating: positions of the leaves that mutate, see `mutating_leaves`.
        objectives: what to select on.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer.
        info: what the latest cycle did.
        key_data: uint32 `[2]`, the key of the run.
        cycle: int32 `[]`, index of this cycle.
        strategy_state: what the strategy keeps.

    Returns:
        The updates, whether they leave the base step, bool `[]`, what the latest cycle did, and
        what the strategy keeps.
    """
    idle_leaves = idle_updates(base_updates, params, mutating)
    step = _Step(
        jumped=jnp.zeros([], jnp.bool_),
        leaves=constant(idle_leaves),
        info=info,
        strategy_state=constant(strategy_state),
    )
    fixed, fixed_updates = constant((params, base_updates))

    def with_cycle(idle: _Step, cycle: jax.Array) -> _Step:
        # Not the base updates themselves: the step holds those of the mutating leaves.
        updates = replaced(fixed_updates, fixed, mutating, idle.leaves)
        parent = snapshot(fixed, updates, mutating, spec.noise, cycle)
        return _evolved_or_idle(spec, objectives, parent, idle, key_data, cycle)

    # Outside of jit, where none is due, there is nothing to compile.
    if isinstance(due, jax.core.Tracer) or due:
        with advice_on_value_fn():
            step = xla.at_most_once(due, with_cycle, step, cycle)
    leaves = following(step.leaves, idle_leaves, step.jumped)
    updates = resume(step.jumped, leaves, params, base_updates, mutating)
    kept = following(step.strategy_state, strategy_state, step.jumped)
    # The rule goes on also where the parent was taken.
    kept = kept._replace(accept=following(step.strategy_state.accept, strategy_state.accept, due))
    return updates, step.jumped, step.info, kept


def _evolved_or_idle(
    spec: CycleSpec,
    objectives: Objectives,
    parent: Parent,
    idle: _Step,
    key_data: jax.Array,
    cycle: jax.Array,
) -> _Step:
    """The step with a cycle, from that without."""

    def evolved() -> _Evolved:
        key = cycle_key(key_data, cycle)
        return _generations(spec, objectives, parent, key, cycle, idle.strategy_state)

    def stayed() -> _Evolved:
        return parent.genome.leaves(), idle.jumped, idle.info, idle.strategy_state

    # Always takes `evolved`. The predicate is opaque so XLA cannot hoist the cycle into idle steps.
    genome, jumped, info, strategy_state = xla.held_in_a_branch(cycle, evolved, stayed)
    large = {
        at: jnp.where(jumped, leaf.astype(idle.leaves[at].dtype), idle.leaves[at])
        for at, leaf in parent.stacks.alone(genome).items()
    }
    own = large | parent.stacks.taken_out(genome, idle.leaves, jumped)
    leaves = tuple(own[at] for at in range(len(own)))
    return _Step(jumped, leaves, info, strategy_state)


def _generations(
    spec: CycleSpec,
    objectives: Objectives,
    parent: Parent,
    key: jax.Array,
    cycle: jax.Array,
    strategy_state: StrategyState,
) -> _Evolved:
    """The mutating leaves that all generations lead to, and whether these left the parent."""
    sigma = spec.sigma(cycle) if callable(spec.sigma) else spec.sigma
    sigma = lax.stop_gradient(jnp.asarray(sigma, fitness_dtype()))

    def generation(
        genome: Genome, index: jax.Array, strategy_state: StrategyState
    ) -> tuple[Leaves, StrategyState, Outcome]:
        around = parent._replace(genome=genome)
        return run_generation(spec, objectives, around, key, sigma, index, strategy_state)

    def next_generation(
        carry: tuple[Leaves, StrategyState, Aux | None], index: jax.Array
    ) -> tuple[tuple[Leaves, StrategyState, Aux | None], Outcome]:
        leaves, strategy_state, aux = carry
        chosen, strategy_state, outcome = generation(
            parent.genome.of(leaves), index, strategy_state
        )
        aux = auxiliary.after_generation(aux, outcome.aux, index)
        leaves = optax.tree.where(outcome.jumped, chosen, leaves)
        # Not one for each generation: of all of them no more is held than of one.
        return (leaves, strategy_state, aux), outcome._replace(aux=None)

    if spec.generations > 1:
        indices = jnp.arange(spec.generations, dtype=jnp.int32)
        start = parent.genome.leaves(), strategy_state, auxiliary.nothing_kept(spec.aux)
        (genome, strategy_state, aux), outcomes = lax.scan(next_generation, start, indices)
    else:
        genome, strategy_state, outcome = generation(parent.genome, jnp.int32(0), strategy_state)
        aux = outcome.aux
        outcomes = jax.tree.map(lambda scalar: scalar[None], outcome._replace(aux=None))
    jumped = jnp.any(outcomes.jumped)
    info = CycleInfo(
        cycle_index=cycle,
        parent_fitness=outcomes.parent[0],
        best_fitness=outcomes.best[-1],
        mean_fitness=outcomes.mean[-1],
        child_fitness=outcomes.child[-1],
        accepted=jumped,
        sigma=sigma,
        evaluations=jnp.sum(outcomes.evaluations, dtype=jnp.int32),
        aux=aux,
    )
    return genome, jumped, info, strategy_state
