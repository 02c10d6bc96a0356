"""An open cycle: the rounds of `core/generation.py` without their evaluations.

They draw, sum and choose as those do, from fitness that is told. `update`, the bound method of a
`Step`, is the optimizer as `jax.jit` sees it: it is hashed by the identity of that step.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._state import EvolveState
from egd_optax._step import Step
from egd_optax._ticket import (
    ACCEPT,
    BEST,
    CHILD,
    MEMBERS,
    STATIC,
    Parent,
    Ticket,
    population_of,
    settings_of,
    snapshot_of,
)
from egd_optax.backend import xla
from egd_optax.backend.devices import Devices
from egd_optax.backend.memory import memory_of
from egd_optax.backend.packing import Arrays
from egd_optax.base.leaves import aligned, flatten, replaced
from egd_optax.core import child, cycle
from egd_optax.core.bounds import bounds_of
from egd_optax.core.evaluate import NEVER, Scored
from egd_optax.core.fitness import fitness_dtype
from egd_optax.core.generation import concluded
from egd_optax.core.info import CycleInfo, Generation, Ran, info_of
from egd_optax.core.norm import update_norm
from egd_optax.core.population import Candidate
from egd_optax.core.residual import if_left, with_fractions, without_fractions
from egd_optax.core.spec import StrategyState
from egd_optax.core.stage import Round
from egd_optax.core.strategy import adapted_sigma


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """An open cycle: a round whose fitness is to be told. It is a pytree, to be stored and pickled.

    Attributes:
        ticket: for workers.
        parent: for workers.
        base_updates: the updates of the base.
        strategy_state: the state of the strategy before the generation.
        info: the report of the generations before.
        told: the fitness of the generation so far: of its members, `[n]`, and of its child, `[]`.
        anchors: see `egd_optax.base.dependence.Traits`.
        guarded: whether `accept` compares by another fitness than that of the members.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import ask_tell, evolve
        >>> tx, params = evolve(optax.sgd(0.1)), jnp.ones(3)
        >>> asked, state = ask_tell.ask(tx, params, tx.init(params), params)
        >>> asked, state = ask_tell.tell(tx, asked, range(8), state, params)
        >>> asked.ticket.kind, asked.ticket.size
        ('child', 1)
    """

    ticket: Ticket
    parent: Parent
    base_updates: optax.Updates
    strategy_state: StrategyState
    info: CycleInfo
    told: Arrays
    anchors: tuple[int | None, ...] = dataclasses.field(metadata=STATIC)
    guarded: bool = dataclasses.field(metadata=STATIC)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def opened(
    update: Any,
    mutating: tuple[int, ...],
    anchors: tuple[int | None, ...],
    guarded: bool,
    params: optax.Params,
    base_updates: optax.Updates,
    state: EvolveState,
) -> Asked:
    """Opens a cycle behind the step of the base.

    Args:
        update: of the optimizer.
        mutating: positions of the leaves that mutate.
        anchors: see `Traits`.
        guarded: see `Asked`.
        params: the parameters before the step.
        base_updates: the updates of the base.
        state: the state after its step.
    """
    step: Step = update.__self__
    spec = step.spec
    with jax.numpy_rank_promotion("allow"):
        start = step.start(params, base_updates, state)
        (leaves, treedef), steps = flatten(params), aligned(base_updates, params)
        own = _leaves_at(mutating, params)
        cycle.check_noise(spec.noise, own)
        moved = list(cycle.after_step(leaves, steps, mutating))
        for at, leaf in zip(mutating, own, strict=True):
            moved[at] = leaf
        updates = tuple(jnp.asarray(steps[at]) for at in mutating)
        updates = with_fractions(start.strategy_state.residual, own, mutating, updates)
        time = jnp.zeros([3], jnp.int32)
        bounds = bounds_of(spec.bounds, params, mutating)
        parent = Parent(jax.tree.unflatten(treedef, moved), updates, time, bounds=bounds)
        ticket = Ticket(
            key=start.key_data,
            count=state.count,
            cycle=start.cycle,
            generation=jnp.int32(0),
            sigma=jnp.zeros([], fitness_dtype()),
            best=jnp.int32(0),
            kind=MEMBERS,
            numbers=(),
            members=spec.member_count,
            mirrors=spec.antithetic,
            noise=spec.noise,
            mutating=mutating,
            settings=settings_of(spec),
            refine=spec.refine,
        )
        asked = Asked(
            ticket, parent, base_updates, start.strategy_state, start.info, (), anchors, guarded
        )
        return _generation(step, asked, state.base_state, ticket.generation)


def _generation(step: Step, asked: Asked, base_state: optax.OptState, index: jax.Array) -> Asked:
    """Asks for the members of a generation."""
    spec, state = step.spec, asked.strategy_state
    sigma = adapted_sigma(spec, cycle.sigma_of(spec, asked.ticket.cycle), state)
    numbers = range(spec.skips_parent, spec.member_count)
    ticket = dataclasses.replace(
        asked.ticket, generation=index, sigma=sigma, kind=MEMBERS, numbers=numbers
    )
    read = spec.noise.reads(base_state, state.of_noise)
    reads = None if read is None else snapshot_of(ticket, asked.parent).leaves_of(read)
    time = jnp.stack([ticket.count, ticket.cycle, index])
    parent = asked.parent._replace(time=time, reads=reads, child=None)
    return dataclasses.replace(asked, ticket=ticket, parent=parent, told=())


@functools.partial(jax.jit, static_argnums=(0, 1))
def told(
    update: Any,
    last: bool,
    asked: Asked,
    fitness: jax.Array,
    params: optax.Params,
    state: EvolveState,
) -> Asked | tuple[optax.Updates, EvolveState]:
    """The next round, or the updates and the state after the last one.

    Args:
        update: of the optimizer.
        last: whether this is the last generation.
        asked: the open cycle.
        fitness: of the candidates that are asked for, `[size]`.
        params: the parameters before the step.
        state: the state after the step of the base.
    """
    step: Step = update.__self__
    spec, kind = step.spec, asked.ticket.kind
    with jax.numpy_rank_promotion("allow"):
        snapshot = snapshot_of(asked.ticket, asked.parent)
        population = population_of(asked.ticket, asked.parent, snapshot)
        stage = Round(spec, snapshot, population, Devices(), asked.ticket.sigma)
        fitness = jnp.where(fitness == 0, jnp.zeros_like(fitness), fitness)  # none is -0.0
        fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)
        if kind == MEMBERS:
            members = jnp.pad(fitness, (spec.skips_parent, 0), constant_values=jnp.inf)
            asked = dataclasses.replace(asked, told=(members,))
            if spec.accept.compares:
                return _with_child(asked, stage)
        elif kind == CHILD:
            asked = dataclasses.replace(asked, told=(*asked.told, fitness[0]))
            if asked.guarded:
                return _with_comparison(asked, takes_best=spec.accept.takes_best)
        asked = _ended(asked, stage, fitness)
        if not last:
            return _generation(step, asked, state.base_state, asked.ticket.generation + 1)
        strategy_state, positions = asked.strategy_state, asked.ticket.mutating
        own, residual = without_fractions(
            strategy_state.residual, _leaves_at(positions, params), positions, asked.parent.updates
        )
        updates = replaced(asked.base_updates, params, positions, own)
        strategy_state = strategy_state._replace(residual=residual)
        ran = Ran(updates, asked.info.accepted, asked.info, strategy_state)
        due = jnp.ones([], jnp.bool_)
        return step.after_cycle(ran, due, params, asked.base_updates, asked.anchors, state)


def _with_child(asked: Asked, stage: Round) -> Asked:
    """Asks for the child."""
    child = _in_order(stage.population.updates_to(_child(asked, stage)[0]), stage)
    parent = asked.parent._replace(child=child)
    ticket = dataclasses.replace(asked.ticket, kind=CHILD, numbers=(asked.ticket.members,))
    return dataclasses.replace(asked, ticket=ticket, parent=parent)


def _with_comparison(asked: Asked, *, takes_best: bool) -> Asked:
    """Asks for parent, best member and child, by the fitness that `accept` compares."""
    numbers = (0, *(BEST,) * takes_best, asked.ticket.members)
    best = jnp.argmin(asked.told[0]).astype(jnp.int32)
    ticket = dataclasses.replace(asked.ticket, kind=ACCEPT, numbers=numbers, best=best)
    return dataclasses.replace(asked, ticket=ticket)


def _child(asked: Asked, stage: Round) -> tuple[Candidate, optax.OptState]:
    """The child, and the next state of `es_optimizer`; members with a weight are drawn again.

    It is made behind the boundary that a cycle within `jax.jit` has around it, see
    `core/evaluate.py`. XLA would else round `es_optimizer` in another way.
    """
    compares = stage.spec.accept.compares
    both = stage.population.parent(with_center=compares), asked.strategy_state.es_optimizer
    land = functools.partial(child.landed, stage, memory_of("replay", 0))
    if not compares:
        population, fitness = xla.no_hoist(stage.population, asked.told[0])
        return land(both, population, fitness, None, None, None)
    always = ~xla.opaque_false(asked.ticket.count)
    return xla.run_if(always, land, both, stage.population, asked.told[0], None, None, None)


def _ended(asked: Asked, stage: Round, fitness: jax.Array) -> Asked:
    """The cycle after a generation; `fitness` is that of its last round."""
    ticket, accept = asked.ticket, stage.spec.accept
    unknown = jnp.full([], jnp.inf, fitness.dtype)
    members, child = (*asked.told, unknown)[:2]
    best_fitness = jnp.min(members)
    compared = members[0], best_fitness, child
    if ticket.kind == ACCEPT:
        of_best = fitness[1] if accept.takes_best else unknown
        compared = fitness[0], of_best, jnp.where(jnp.isfinite(child), fitness[-1], jnp.inf)
    held, es_state = _child(asked, stage)
    all_fitness = jnp.append(members, jnp.stack([child, jnp.full_like(child, NEVER)]))
    scored = Scored(held, all_fitness, None, None, None, es_state)
    chosen, state, found = concluded(stage, scored, best_fitness, compared, asked.strategy_state)
    chosen = _in_order(chosen, stage)
    parent = asked.parent._replace(updates=if_left(found.accepted, chosen, asked.parent.updates))
    after = dataclasses.replace(asked, parent=parent, strategy_state=state)
    return dataclasses.replace(after, info=_info_after(after, found))


def _in_order(blocks: Arrays, stage: Round) -> Arrays:
    """The leaves in blocks, in the order of their positions."""
    leaves = stage.population.separate(blocks)
    return tuple(leaves[at] for at in range(len(leaves)))


def _leaves_at(positions: tuple[int, ...], params: optax.Params) -> Arrays:
    leaves = flatten(params)[0]
    return tuple(jnp.asarray(leaves[at]) for at in positions)


def _info_after(asked: Asked, found: Generation) -> CycleInfo:
    """The report of the cycle so far, whose last generation led to the parent."""
    before, later = asked.info, asked.ticket.generation > 0
    scalars = jax.tree.map(lambda scalar: scalar[None], found)
    jumped = found.accepted | (later & before.accepted)
    steps = aligned(asked.base_updates, asked.parent.params)
    positions, residual = asked.ticket.mutating, asked.strategy_state.residual
    own = _leaves_at(positions, asked.parent.params)
    before_cycle = with_fractions(residual, own, positions, [steps[at] for at in positions])
    blocks = snapshot_of(asked.ticket, asked.parent._replace(updates=before_cycle)).blocks
    info = info_of(asked.ticket.cycle, scalars, jumped, None)
    return info._replace(
        parent_fitness=jnp.where(later, before.parent_fitness, info.parent_fitness),
        evaluations=info.evaluations + jnp.where(later, before.evaluations, 0),
        update_norm=update_norm(blocks, blocks.layout.stack(asked.parent.updates)),
    )
