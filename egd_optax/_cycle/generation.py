"""One round of a cycle: mutate -> evaluate -> select -> recombine -> accept."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._cycle import auxiliary
from egd_optax._cycle.accept import choose
from egd_optax._cycle.arguments import taken_by
from egd_optax._cycle.auxiliary import Aux, Seen
from egd_optax._cycle.elites import Elites, elites_of
from egd_optax._cycle.evaluation import evaluation_of
from egd_optax._cycle.fitness import (
    Fitness,
    OwnFitness,
    fitness_dtype,
    fitness_of,
    own_fitness_of,
)
from egd_optax._cycle.members import Members, noise_std
from egd_optax._cycle.parent import Parent
from egd_optax._cycle.parts import check_noise
from egd_optax._cycle.place import mesh_of, place_of
from egd_optax._cycle.score import score
from egd_optax._cycle.spec import CycleSpec, Leaves, Objectives, StrategyState
from egd_optax._cycle.storage import storage_of
from egd_optax._cycle.strategy import stepped
from egd_optax._cycle.total import child_of, total_of
from egd_optax._cycle.weights import member_weights
from egd_optax.accept import BEST, CHILD, PARENT


class Outcome(NamedTuple):
    """What came of a generation; scalars but for `aux`.

    Attributes:
        jumped: bool, whether it left its parent.
        parent: fitness of its parent, +inf where it was not evaluated; likewise:
        best: of its best member.
        mean: over its members of finite fitness, +inf if there is none.
        child: of its child.
        evaluations: int32, how often `value_fn` was evaluated.
        aux: what it returned beside the fitness, None if nothing.
    """

    jumped: jax.Array
    parent: jax.Array
    best: jax.Array
    mean: jax.Array
    child: jax.Array
    evaluations: jax.Array
    aux: Aux | None


def run_generation(
    spec: CycleSpec,
    objectives: Objectives,
    parent: Parent,
    key: jax.Array,
    sigma: jax.Array,
    generation: jax.Array,
    strategy_state: StrategyState,
) -> tuple[Leaves, StrategyState, Outcome]:
    """Runs a generation.

    Args:
        spec: what to do.
        objectives: what to select on.
        parent: what to mutate.
        key: raw threefry key of the cycle, uint32 `[2]`.
        sigma: float `[]`.
        generation: its index in the cycle, int32 `[]`.
        strategy_state: what the strategy keeps.

    Returns:
        The mutating leaves that it chose, any if it did not jump; what the strategy keeps; and
        what came of it.
    """
    added = {"generation": generation, "base_state": objectives.base_state}

    def prepare(objective: Callable[..., Any]) -> OwnFitness:
        kwargs = taken_by(objective, objectives.extra_args, added)
        return own_fitness_of(
            objective, parent, kwargs=kwargs, execution=spec.execution, aux=spec.aux
        )

    own_fitness = prepare(objectives.value_fn)
    fitness = fitness_of(own_fitness, parent)
    members = members_of(spec, parent, key, sigma, generation)
    members, unformed, batch_size = evaluation_of(spec, members, parent, own_fitness)
    place = place_of(spec.execution, members, objectives.extra_args)
    storage = storage_of(spec.memory, spec.elite_count)

    def weights_of(scores: jax.Array) -> jax.Array:
        # A parent beside pairs that was not evaluated has no rank among them.
        unranked = int(spec.selects_only and spec.antithetic)
        weights = member_weights(spec.recombine, scores[unranked:], spec.elite_count)
        return jnp.pad(weights, (unranked, 0))

    def child_from(
        members: Members,
        kept: Elites | None,
        scores: jax.Array,
        buffer: Leaves | None,
        optimizer_state: optax.OptState,
    ) -> tuple[Leaves, optax.OptState]:
        recombined = functools.partial(
            child_of if spec.goes_straight else total_of,
            members,
            weights_of(scores),
            scores,
            place,
            elites=_elites(spec, kept, scores),
            storage=storage,
            elite_count=spec.elite_count,
            buffer=buffer,
        )
        if spec.goes_straight:
            return recombined(), optimizer_state
        return stepped(
            spec.es_optimizer,
            parent,
            members.genome,
            spec.mutable,
            recombined(),
            optimizer_state,
        )

    judges_best = (
        unformed is not None
        and objectives.accept_value_fn is None
        and spec.accept.takes_best
        and spec.accept.compares
    )
    kept, scores, child, state_of_child, of_child, seen, of_best = score(
        members,
        fitness,
        place,
        storage,
        child_from,
        strategy_state.es_optimizer,
        auxiliary.nothing_seen(spec.aux, fitness_dtype()),
        selects_only=spec.selects_only,
        batch_size=batch_size,
        unformed=unformed,
        judges_best=judges_best,
    )
    best = jnp.argmin(scores).astype(jnp.int32)
    of_best = scores[best] if of_best is None else of_best
    read_best = functools.partial(storage.read, kept, members, best)
    judged = scores[0], of_best, of_child
    evaluations = spec.population_size if spec.selects_only else members.size + 1 + judges_best
    if objectives.accept_value_fn is not None:
        judge = place.agreed(fitness_of(prepare(objectives.accept_value_fn), parent))
        judged, seen = _judged_by(
            judge, spec.accept.takes_best, members, best, read_best, child, of_child, seen
        )
    outcome = Outcome(
        jumped=jnp.bool_(False),
        parent=scores[0],
        best=of_best,
        mean=_mean(scores),
        child=of_child,
        evaluations=jnp.int32(evaluations),
        aux=None if seen is None else seen.aux,
    )
    # Not read off the leaves, of which a device inside of `jax.shard_map` may have a part only.
    moved = jnp.any(weights_of(scores)[1:] != 0) & (sigma != 0)
    choice, state_of_rule = choose(
        spec.accept, key, generation, judged, best, moved, strategy_state.accept
    )
    # The best member comes over the child, of which there is no more need.
    chosen = read_best(choice == BEST, child) if spec.accept.takes_best else child
    of_optimizer = strategy_state.es_optimizer
    strategy_state = strategy_state._replace(
        es_optimizer=optax.tree.where(choice == CHILD, state_of_child, of_optimizer),
        accept=state_of_rule,
    )
    return chosen, strategy_state, outcome._replace(jumped=choice != PARENT)


def _elites(spec: CycleSpec, kept: Elites | None, scores: jax.Array) -> Elites | None:
    """The elites that are kept, or those that are drawn again one by one."""
    if spec.memory == "replay" and spec.elite_count is not None:
        return elites_of(scores, spec.elite_count)
    return kept


def _judged_by(
    judge: Fitness,
    takes_best: bool,
    members: Members,
    best: jax.Array,
    read_best: Callable[[jax.Array, Leaves], Leaves],
    child: Leaves,
    child_fitness: jax.Array,
    seen: Seen | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Seen | None]:
    """Parent, best member and child on data that they were not selected on.

    The best member is judged only where the rule may take it. Also returns what was seen beside the
    fitness, of which these evaluations only add to the total.
    """

    def judged(leaves: Leaves) -> jax.Array:
        nonlocal seen
        found = judge(leaves)
        seen = auxiliary.after_one(seen, found, members.size + 2, members.size)
        return found.value

    genome = members.genome.leaves()
    parent = judged(genome)
    unjudged = jnp.full_like(parent, jnp.inf)
    elite = judged(read_best(best > 0, genome)) if takes_best else unjudged
    return (parent, elite, jnp.where(jnp.isfinite(child_fitness), judged(child), jnp.inf)), seen


def members_of(
    spec: CycleSpec, parent: Parent, key: jax.Array, sigma: jax.Array, generation: jax.Array
) -> Members:
    """The members around a parent, none of them drawn yet."""
    genome = parent.genome.leaves()
    check_noise(spec.noise, parent.stacks.one_of_each(genome))
    return Members(
        genome=parent.genome,
        stacks=parent.stacks,
        mutating=parent.mutating,
        key=key,
        first=generation * spec.member_count,
        stds=parent.stacks.one_by_one(lambda leaf: noise_std(leaf, sigma, spec.noise), genome),
        size=spec.member_count,
        antithetic=spec.antithetic,
        noise=spec.noise,
        mesh=mesh_of(spec.execution),
    )


def _mean(scores: jax.Array) -> jax.Array:
    """The mean over the finite ones, +inf if there is none."""
    finite = jnp.isfinite(scores)
    count = jnp.sum(finite.astype(scores.dtype))
    mean = jnp.sum(scores, where=finite) / jnp.maximum(count, jnp.ones_like(count))
    return jnp.where(jnp.any(finite), mean, jnp.inf)
