"""One round of a cycle: mutate -> evaluate -> select -> recombine, and the choice among them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._cycle import population
from egd_optax._cycle.breed import Brood, breed, breed_divided
from egd_optax._cycle.evaluate import Fitness, evaluate
from egd_optax._cycle.mutate import Mutants, noise_std
from egd_optax._cycle.recombine import ELITE, PARENT, accept
from egd_optax._cycle.snapshot import Leaves, Parent
from egd_optax._cycle.spec import CycleSpec, Objectives


class Outcome(NamedTuple):
    """What came of a generation; scalars.

    Attributes:
        moved: bool, whether it left its parent.
        parent: fitness of its parent; likewise:
        best: of its best member.
        mean: over its members of finite fitness, +inf if there is none.
        child: of its child.
    """

    moved: jax.Array
    parent: jax.Array
    best: jax.Array
    mean: jax.Array
    child: jax.Array


def run_generation(
    spec: CycleSpec,
    objectives: Objectives,
    parent: Parent,
    key: jax.Array,
    sigma: jax.Array,
    generation: jax.Array,
) -> tuple[Leaves, Outcome]:
    """Runs a generation.

    Args:
        spec: what to do.
        objectives: what to select on.
        parent: what to mutate.
        key: threefry key of the cycle.
        sigma: float `[]`.
        generation: its index in the cycle, int32 `[]`.

    Returns:
        The moving leaves that it chose, any where it did not move, and what came of it.
    """
    stds = tuple(
        noise_std(leaf, sigma, relative_sigma=spec.relative_sigma, min_scale=spec.min_scale)
        for leaf in parent.genome.leaves()
    )
    mutants_of = functools.partial(
        Mutants,
        moving=parent.moving,
        key=key,
        first=generation * spec.member_count,
        stds=stds,
        size=spec.member_count,
        antithetic=spec.antithetic,
        rank=spec.rank,
    )
    mutants = mutants_of(parent.genome)
    args = {"generation": generation, **objectives.extra_args}
    fitness = evaluate(objectives.value_fn, parent, extra_args=args, axis_names=spec.axis_names)
    if spec.population_axis is None:
        brood = breed(spec, mutants, fitness)
    else:
        division = population.divide(
            spec.population_axis, spec.mesh, mutants, objectives.extra_args
        )
        brood = breed_divided(spec, division, mutants, mutants_of, fitness)
    scores, child_score = brood.scores, fitness(brood.child)
    judged = scores[0], scores[brood.best], child_score
    if objectives.accept_value_fn is not None:
        judge = evaluate(
            objectives.accept_value_fn, parent, extra_args=args, axis_names=spec.axis_names
        )
        judged = _judged_by(judge, spec.accept, mutants, brood, child_score)
    choice = accept(spec.accept, *judged)
    finite = jnp.isfinite(scores)
    mean = jnp.sum(scores, where=finite) / jnp.maximum(jnp.sum(finite), 1)
    # The best elite comes over the child, of which there is no more need.
    return brood.read_best(choice == ELITE, brood.child), Outcome(
        moved=choice != PARENT,
        parent=scores[0],
        best=jnp.min(scores),
        mean=jnp.where(jnp.any(finite), mean, jnp.inf),
        child=child_score,
    )


def _judged_by(
    judge: Fitness,
    rule: str,
    mutants: Mutants,
    brood: Brood,
    child_score: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parent, best member and child on data that they were not selected on.

    The best member is judged only where the rule may take it.
    """
    genome = mutants.genome.leaves()
    parent = judge(genome)
    unjudged = jnp.full_like(parent, jnp.inf)
    elite = judge(brood.read_best(brood.best > 0, genome)) if rule == "best" else unjudged
    return parent, elite, jnp.where(jnp.isfinite(child_score), judge(brood.child), jnp.inf)
