"""One evolution cycle: some generations around the parameters that the base step leads to."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._advice import advice_on_value_fn
from egd_optax.backend import fixed_point, xla
from egd_optax.backend.derivatives import constant, following
from egd_optax.backend.devices import Devices, on_devices
from egd_optax.backend.packing import Arrays
from egd_optax.backend.unpacking import unpack_if
from egd_optax.base.arguments import taken_by
from egd_optax.base.leaves import aligned, flatten, is_masked, replaced
from egd_optax.core import auxiliary
from egd_optax.core.blocks import Blocks, blocks_of, lay_out
from egd_optax.core.bounds import bounds_of
from egd_optax.core.fitness import Snapshot, fitness_dtype
from egd_optax.core.generation import run_generation
from egd_optax.core.info import CycleInfo, Ran, Start, info_of
from egd_optax.core.norm import update_norm
from egd_optax.core.perturbation import Perturbation, is_of_library
from egd_optax.core.population import generation_key
from egd_optax.core.residual import (
    if_left,
    with_fractions,
    without_fractions,
    without_jump,
)
from egd_optax.core.spec import CycleSpec, Mutating, Objectives, StrategyState
from egd_optax.factored.interpret import primitives_of
from egd_optax.noise.interface import Noise
from egd_optax.sigma import start_of


class _Carry(NamedTuple):
    """The data that a step with a cycle changes; a step without one passes it on in place.

    Attributes:
        updates: of the mutating leaves; within a cycle in blocks.
        state: the state of the strategy.
        info: the report of the latest cycle.
        jumped: bool `[]`, whether a cycle left the base step.
    """

    updates: Arrays
    state: StrategyState
    info: CycleInfo
    jumped: jax.Array


def run_cycle_if(
    due: jax.Array,
    spec: CycleSpec,
    mutating: Mutating,
    objectives: Objectives,
    start: Start,
) -> Ran:
    """Runs a cycle around the parameters that the base step leads to, if one is due.

    Args:
        due: bool `[]`.
        spec: the settings of the cycle.
        mutating: the leaves that mutate.
        objectives: the functions to select by.
        start: the step before its cycle.
    """
    steps = aligned(start.base_updates, start.params)
    idle = tuple(jnp.asarray(steps[at]) for at in mutating.positions)
    never = jnp.zeros([], jnp.bool_)
    carry = _Carry(constant(idle), constant(start.strategy_state), start.info, never)
    fixed, fixed_steps = constant((start.params, steps))
    leaves, treedef = flatten(fixed)
    own_params = tuple(jnp.asarray(leaves[at]) for at in mutating.positions)
    bounds = bounds_of(spec.bounds, start.params, mutating.positions)

    def with_cycle(before: _Carry, cycle: jax.Array, key_data: jax.Array, own: Arrays) -> _Carry:
        residual = before.state.residual
        base = with_fractions(residual, own, mutating.positions, before.updates)
        # Outside of the branch, which is then given a few blocks, and not each leaf.
        still, learning = mutating.still, spec.refine is not None
        blocks = blocks_of(spec.noise, own, base, bounds, still=still, learning=learning)

        def run() -> _Carry:
            others = after_step(leaves, fixed_steps, mutating.positions)
            snapshot = Snapshot(blocks, others, treedef, mutating.positions)
            axis, mesh = spec.execution.population_axis, spec.execution.mesh
            on_each = functools.partial(_generations, spec)
            ran = on_devices(
                axis, mesh, on_each, objectives, snapshot, before.state, cycle, key_data,
                calls_python=axis is not None and _calls_python(objectives, fixed),
            )  # fmt: skip
            if not mutating.still:
                return ran
            # The result is then that of the loop around, in its memory. A choice would be another.
            return ran._replace(updates=xla.run_if(~ran.jumped, without_jump, ran.updates))

        def instead() -> _Carry:
            return before._replace(updates=_zeros_like(blocks.held_updates))

        # The cycle is in a branch. XLA would else move its draws out, and idle steps pay for them.
        # If the base moves leaves, the choice is outside: the branch would hold its updates too.
        after = xla.hold_in_branch(cycle, run, instead)
        # Outside: the branch would hold the sum of the updates and what is chosen of it.
        moved = jnp.where(after.jumped, update_norm(blocks, after.updates), 0)
        base = without_jump(base) if mutating.still else base
        updates = unpack_if(after.jumped, blocks.layout, after.updates, base, chosen=mutating.still)
        updates = _with_integers(updates, blocks, after.updates)
        updates, residual = without_fractions(residual, own, mutating.positions, updates)
        return after._replace(
            updates=updates,
            state=after.state._replace(residual=residual),
            info=after.info._replace(update_norm=moved),
        )

    # Outside of jit, if none is due, there is nothing to compile.
    if isinstance(due, jax.core.Tracer) or due:
        check_noise(spec.noise, own_params)
        with advice_on_value_fn():
            carry = xla.run_if(due, with_cycle, carry, start.cycle, start.key_data, own_params)
    updates = following(carry.updates, idle, carry.jumped)
    # A rule, and a noise, keep something whether or not the cycle left the parent.
    state = StrategyState(
        noise=following(carry.state.noise, start.strategy_state.noise, due),
        es_optimizer=following(
            carry.state.es_optimizer, start.strategy_state.es_optimizer, carry.jumped
        ),
        accept=following(carry.state.accept, start.strategy_state.accept, due),
        residual=carry.state.residual,
    )
    updates = replaced(start.base_updates, start.params, mutating.positions, updates)
    return Ran(updates, carry.jumped, carry.info, state)


def _calls_python(objectives: Objectives, params: optax.Params) -> bool:
    """Whether the evaluation of a candidate calls back to Python; found by a trace."""
    added = {"generation": jnp.int32(0), "base_state": objectives.base_state}
    names: set[str] = set()
    for fn in filter(None, (objectives.value_fn, objectives.accept_value_fn)):
        kwargs = taken_by(fn, objectives.extra_args, added)
        names |= primitives_of(jax.make_jaxpr(lambda fn=fn, kwargs=kwargs: fn(params, **kwargs))())
    return any("callback" in name for name in names)


def after_step(
    leaves: Sequence[Any], steps: Sequence[Any], mutating: tuple[int, ...]
) -> tuple[Any, ...]:
    """All leaves after the base step; of those that mutate the shapes alone."""

    def after(at: int, leaf: Any, step: Any) -> Any:
        if at in own:
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        return leaf if step is None or is_masked(leaf) else optax.apply_updates(leaf, step)

    own = set(mutating)
    return tuple(map(after, range(len(leaves)), leaves, steps))


def sigma_of(spec: CycleSpec, cycle: jax.Array) -> jax.Array:
    """The sigma that a cycle starts from, `[]`, before what adapts it."""
    sigma = lax.stop_gradient(jnp.asarray(start_of(spec.sigma, cycle), fitness_dtype()))
    # A schedule can fall below zero, or be NaN: nothing moves then.
    return jnp.where(sigma > 0, sigma, jnp.zeros_like(sigma))


def _generations(
    spec: CycleSpec,
    devices: Devices,
    objectives: Objectives,
    snapshot: Snapshot,
    before: StrategyState,
    cycle: jax.Array,
    key_data: jax.Array,
) -> _Carry:
    """The updates that all generations lead to, in blocks, and whether they leave the base step."""
    sigma = sigma_of(spec, cycle)

    def generation(index: jax.Array, updates: Any, state: StrategyState) -> Any:
        parent = snapshot._replace(blocks=snapshot.blocks._replace(updates=updates))
        key = generation_key(key_data, cycle, index)
        return run_generation(spec, objectives, parent, key, sigma, index, state, devices)

    def next_generation(carry: Any, index: jax.Array) -> Any:
        updates, state, aux = carry
        chosen, state, found = generation(index, updates, state)
        updates = if_left(found.accepted, chosen, updates)
        aux = auxiliary.after_generation(aux, found.aux, index)
        # Not one for each generation: of all of them no more is held than of one.
        return (updates, state, aux), found._replace(aux=None)

    if spec.generations > 1:
        indices = jnp.arange(spec.generations, dtype=jnp.int32)
        begin = snapshot.blocks.held_updates, before, auxiliary.nothing_kept(spec.aux)
        (updates, state, aux), found = lax.scan(next_generation, begin, indices)
    else:
        updates, state, found = generation(jnp.int32(0), snapshot.blocks.updates, before)
        aux = found.aux
        found = jax.tree.map(lambda scalar: scalar[None], found._replace(aux=None))
    jumped = jnp.any(found.accepted)
    return _Carry(updates, state, info_of(cycle, found, jumped, aux), jumped)


def _zeros_like(updates: Arrays) -> Arrays:
    return tuple(map(jnp.zeros_like, updates))


def _with_integers(updates: Arrays, blocks: Blocks, chosen: Arrays) -> Arrays:
    """The updates, those of integers as a cycle chose them, whether or not it left the parent."""
    of_integers = {
        block.leaves[0]: array[0]
        for block, leaves, array in zip(blocks.layout.blocks, blocks.params, chosen, strict=True)
        if fixed_point.is_integer(leaves.dtype)
    }
    return tuple(of_integers.get(at, update) for at, update in enumerate(updates))


def check_noise(noise: Noise, leaves: Sequence[jax.Array]) -> None:
    """Draws the noise of the smallest leaf once, unless all methods are the library's own.

    Inside of manual axes nothing is drawn: no computation can run while those are traced.

    Raises:
        ValueError: the noise is NaN or infinite.
    """
    sizes = [leaf.size or jnp.inf for leaf in leaves]
    if is_of_library(noise) or not leaves or jax.sharding.get_abstract_mesh().manual_axes:
        return
    smallest = leaves[sizes.index(min(sizes))]
    with jax.ensure_compile_time_eval():
        leaf = jnp.zeros(smallest.shape, smallest.dtype)
        layout, keys = lay_out(noise, [leaf], [leaf]), jnp.zeros((1, 2), jnp.uint32)
        (unit,) = Perturbation((leaf[None],), (), keys, layout, noise).raw_units(jnp.int32(0))
        finite = jnp.all(jnp.isfinite(unit))
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(
            f"`noise` must be finite, got NaN or infinite numbers from {noise!r} for a leaf of "
            f"shape {smallest.shape} and a standard deviation of one."
        )
