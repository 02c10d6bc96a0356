"""One evolution cycle, a stage a file.

snapshot -> (mutate -> evaluate -> select -> recombine) x generations -> resume
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._advice import advice_on_value_fn
from egd_optax._cycle.branch import when
from egd_optax._cycle.evaluate import fitness_dtype
from egd_optax._cycle.generation import Outcome, run_generation
from egd_optax._cycle.mutate import cycle_key
from egd_optax._cycle.resume import carried, replaced, reset_base_state, resume
from egd_optax._cycle.snapshot import Genome, Leaves, Parent, moving_leaves, snapshot
from egd_optax._cycle.spec import CycleSpec, Objectives

__all__ = [
    "CycleInfo",
    "CycleSpec",
    "Objectives",
    "moving_leaves",
    "no_cycle_yet",
    "run_cycle_if",
]


class CycleInfo(NamedTuple):
    """What the latest cycle did; every field is a scalar array that can be logged.

    Fitness is float32, or float64 where x64 is enabled, and +inf stands for a fitness
    that was not finite. Before the first cycle `cycle` is -1 and every fitness +inf.

    Attributes:
        cycle: int32, index of the cycle, from 0.
        parent_fitness: fitness of the base step's parameters, member 0; in the first
            generation, where there are several. All below are of the last one.
        best_fitness: fitness of the best member, the parent included.
        mean_fitness: mean over the members of finite fitness.
        child_fitness: fitness of the recombined child.
        accepted: bool, whether the parameters left the parent, in any generation.
        sigma: float like the fitness, the sigma that was used.
        evaluations: int32, evaluations of `value_fn` in the cycle: in each generation
            the population, the parent of antithetic pairs, and the child.
    """

    cycle: jax.Array
    parent_fitness: jax.Array
    best_fitness: jax.Array
    mean_fitness: jax.Array
    child_fitness: jax.Array
    accepted: jax.Array
    sigma: jax.Array
    evaluations: jax.Array


def no_cycle_yet() -> CycleInfo:
    """The info before the first cycle; each leaf a buffer of its own, to be donated."""

    def unknown() -> jax.Array:
        return jnp.full([], jnp.inf, fitness_dtype())

    return CycleInfo(
        cycle=jnp.full([], -1, jnp.int32),
        parent_fitness=unknown(),
        best_fitness=unknown(),
        mean_fitness=unknown(),
        child_fitness=unknown(),
        accepted=jnp.zeros([], jnp.bool_),
        sigma=jnp.zeros([], fitness_dtype()),
        evaluations=jnp.zeros([], jnp.int32),
    )


def run_cycle_if(
    due: jax.Array,
    spec: CycleSpec,
    base: optax.GradientTransformationExtraArgs,
    objectives: Objectives,
    *,
    params: optax.Params,
    base_updates: optax.Updates,
    base_state: optax.OptState,
    info: CycleInfo,
    key_data: jax.Array,
    cycle: jax.Array,
) -> tuple[optax.Updates, optax.OptState, CycleInfo]:
    """Runs a cycle around the parameters that the base step leads to, where one is due.

    Args:
        due: bool `[]`.
        spec: what to do.
        base: the base optimizer, for its `init` after a jump.
        objectives: what to select on.
        params: the parameters before the step.
        base_updates: the updates of the base optimizer.
        base_state: its state after the step.
        info: what the latest cycle did.
        key_data: uint32 `[2]`, the key of the run.
        cycle: int32 `[]`, index of this cycle.

    Returns:
        The updates, the state of the base optimizer, and what the latest cycle did.
    """
    moving = moving_leaves(params, spec.mutable)
    course = _Course(
        moved=jnp.zeros([], jnp.bool_),
        leaves=carried(base_updates, params, moving),
        base_state=base_state if spec.reset_base else None,
        info=info,
    )

    def with_cycle(idle: _Course, cycle: jax.Array) -> _Course:
        # Not the base updates themselves: the course holds those of the moving leaves.
        updates = replaced(base_updates, moving, idle.leaves)
        return _with_cycle(spec, base, objectives, idle, params, updates, moving, key_data, cycle)

    # Outside of jit every call would compile the cycle anew.
    if isinstance(due, jax.core.Tracer) or due:
        with advice_on_value_fn():
            course = when(due, with_cycle, course, cycle)
    updates = resume(course.moved, course.leaves, params, base_updates, moving)
    return updates, course.base_state if spec.reset_base else base_state, course.info


class _Course(NamedTuple):
    """Where a step leads.

    One buffer a leaf holds either outcome: a step without a cycle passes its updates
    through in place.

    Attributes:
        moved: bool `[]`, whether a cycle left the base step.
        leaves: of the leaves that mutate what the cycle chose if `moved`, else their base
            updates.
        base_state: state of the base optimizer where a cycle may reset it, else None.
        info: what the latest cycle did.
    """

    moved: jax.Array
    leaves: Leaves
    base_state: optax.OptState
    info: CycleInfo


def _with_cycle(
    spec: CycleSpec,
    base: optax.GradientTransformationExtraArgs,
    objectives: Objectives,
    idle: _Course,
    params: optax.Params,
    base_updates: optax.Updates,
    moving: tuple[int, ...],
    key_data: jax.Array,
    cycle: jax.Array,
) -> _Course:
    """The course with a cycle, from that without; XLA must not know the index of the cycle."""

    def evolved() -> tuple[Leaves, jax.Array, CycleInfo]:
        parent = snapshot(params, base_updates, moving)
        return _evolved(spec, objectives, parent, cycle_key(key_data, cycle), cycle)

    def unmoved() -> tuple[Leaves, jax.Array, CycleInfo]:
        return snapshot(params, base_updates, moving).genome.leaves(), idle.moved, idle.info

    # Never the first. XLA moves what is the same in every trip out of all loops around it, so
    # to where an idle step would pay for it, but not out of a conditional.
    genome, moved, info = lax.cond(cycle < 0, unmoved, evolved)
    leaves = tuple(
        jnp.where(moved, target.astype(update.dtype), update)
        for target, update in zip(genome, idle.leaves, strict=True)
    )
    base_state = idle.base_state
    if spec.reset_base:
        landed = optax.apply_updates(params, resume(moved, leaves, params, base_updates, moving))
        base_state = reset_base_state(base, base_state, landed, moved)
    return _Course(moved, leaves, base_state, info)


def _evolved(
    spec: CycleSpec, objectives: Objectives, parent: Parent, key: jax.Array, cycle: jax.Array
) -> tuple[Leaves, jax.Array, CycleInfo]:
    """All generations: the moving leaves that they lead to, whether these left the parent."""
    sigma = spec.sigma(cycle) if callable(spec.sigma) else spec.sigma
    sigma = jnp.asarray(sigma, fitness_dtype())

    def generation(genome: Genome, index: jax.Array) -> tuple[Leaves, Outcome]:
        around = parent._replace(genome=genome)
        return run_generation(spec, objectives, around, key, sigma, index)

    def next_generation(leaves: Leaves, index: jax.Array) -> tuple[Leaves, Outcome]:
        chosen, outcome = generation(Genome(leaves), index)
        return optax.tree.where(outcome.moved, chosen, leaves), outcome

    if spec.generations > 1:
        indices = jnp.arange(spec.generations, dtype=jnp.int32)
        genome, outcomes = lax.scan(next_generation, parent.genome.leaves(), indices)
    else:
        genome, outcome = generation(parent.genome, jnp.int32(0))
        outcomes = jax.tree.map(lambda scalar: scalar[None], outcome)
    moved = jnp.any(outcomes.moved)
    info = CycleInfo(
        cycle=cycle,
        parent_fitness=outcomes.parent[0],
        best_fitness=outcomes.best[-1],
        mean_fitness=outcomes.mean[-1],
        child_fitness=outcomes.child[-1],
        accepted=moved,
        sigma=sigma,
        evaluations=jnp.full([], spec.generations * (spec.member_count + 1), jnp.int32),
    )
    return genome, moved, info
