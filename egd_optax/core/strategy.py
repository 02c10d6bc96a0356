"""The child through an optax transformation, and the state that passes from cycle to cycle."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_like
from egd_optax.accept import Accept
from egd_optax.backend import fixed_point
from egd_optax.backend.arithmetic import sum_dtype, widen
from egd_optax.backend.devices import like_before
from egd_optax.base.arguments import NUMBERS, arrays_of, shapes_of
from egd_optax.base.leaves import flatten, mutating_leaves
from egd_optax.core.fitness import Snapshot
from egd_optax.core.population import Population
from egd_optax.core.residual import first_residual
from egd_optax.core.spec import STRAIGHT, CycleSpec, NoiseAndSigma, StrategyState
from egd_optax.noise.interface import Noise, moves_integers
from egd_optax.sigma import Sigma


def strategy_state_of(spec: CycleSpec, params: optax.Params) -> StrategyState:
    """Makes the first state, with `es_optimizer`'s in float32 or wider.

    `es_optimizer` and `noise` see the mutating leaves of the parameters, and `optax.MaskedNode` in
    the place of others.
    """
    es_optimizer = spec.es_optimizer
    of_optimizer: Any = STRAIGHT.init(())
    of_noise: Any = ()
    residual: Any = ()
    if _keeps_arrays(spec):  # else no leaf need be widened
        leaves, treedef = flatten(params)
        mutating = known_leaves(spec, params)
        residual = first_residual(params, [at for at in mutating if _is_integer(leaves[at])])
        known = _tree(treedef, len(leaves), {at: widen(leaves[at]) for at in mutating})
        of_optimizer = of_optimizer if es_optimizer is None else es_optimizer.init(known)
        of_noise = spec.noise.init(known)
        if isinstance(spec.sigma, Sigma):
            of_noise = NoiseAndSigma(of_noise, spec.sigma.init(known))
    state = StrategyState(of_noise, of_optimizer, spec.accept.init(params), residual)
    # Else a Python number would have another dtype in the first state than in the next ones.
    numbers, with_numbers = arrays_of(state, NUMBERS)
    arrays: StrategyState = with_numbers(
        [jnp.asarray(leaf, jnp.result_type(leaf)) for leaf in numbers]
    )
    return arrays


def on_arrays(
    spec: CycleSpec, state: StrategyState
) -> tuple[CycleSpec, StrategyState, Callable[[StrategyState], StrategyState]]:
    """A cycle whose `es_optimizer` keeps arrays alone, which are the data of a program.

    Args:
        spec: its `es_optimizer` may keep functions or strings, too; they stay.
        state: of the strategy.

    Returns:
        The same cycle, its state, and a function from the state after it to one like `state`.
    """
    inner, kept = spec.es_optimizer, state.es_optimizer
    held, with_held = arrays_of(kept, NUMBERS)
    if inner is None or len(held) == len(jax.tree.leaves(kept)):
        return spec, state, lambda after: after

    def update(updates: Any, held: list[Any], params: Any) -> tuple[Any, list[Any]]:
        updates, after = inner.update(updates, with_held(held), params)
        return updates, arrays_of(after, NUMBERS)[0]

    def with_functions(after: StrategyState) -> StrategyState:
        return after._replace(es_optimizer=with_held(after.es_optimizer))

    optimizer = optax.GradientTransformationExtraArgs(inner.init, update)
    return spec._replace(es_optimizer=optimizer), state._replace(es_optimizer=held), with_functions


def check_strategy_state(spec: CycleSpec, state: Any, params: optax.Params) -> None:
    """Refuses the state of another strategy, which would be dropped or fail further in.

    Raises:
        TypeError: it is no `StrategyState`.
        ValueError: it is that of another `es_optimizer` or `accept`, or for other leaves.
    """
    if not isinstance(state, StrategyState):
        raise TypeError(
            f"`state.strategy_state` must be a StrategyState, got {type(state).__name__}: restore "
            "it into the structure of `tx.init(params)`."
        )
    plain = type(spec.accept).init is Accept.init and not _keeps_arrays(spec)
    if plain and not jax.tree.leaves(state):
        return  # keeps nothing, and holds nothing: nothing need be traced
    expected = shapes_of(lambda: strategy_state_of(spec, params))
    for name in StrategyState._fields:
        check_like(f"strategy_state.{name}", getattr(state, name), getattr(expected, name))


def _keeps_arrays(spec: CycleSpec) -> bool:
    """Whether a part of the strategy makes a state from the parameters that mutate."""
    has_noise = type(spec.noise).init is not Noise.init or moves_integers(spec.noise)
    return spec.es_optimizer is not None or has_noise or isinstance(spec.sigma, Sigma)


def adapted_sigma(spec: CycleSpec, sigma: jax.Array, state: StrategyState) -> jax.Array:
    """The sigma of a generation, `[]`, from the one that its cycle starts from."""
    if isinstance(spec.sigma, Sigma):
        sigma = sigma * spec.sigma.factor(state.of_sigma).astype(sigma.dtype)
    return spec.noise.sigma(sigma, state.of_noise)


def es_steps(
    spec: CycleSpec,
    snapshot: Snapshot,
    population: Population,
    sums: list[jax.Array],
    state: optax.OptState,
) -> tuple[list[jax.Array], optax.OptState]:
    """Steps from the parent along the weighted sum of its members, in blocks.

    Args:
        spec: its `es_optimizer` gets minus the sum as the gradient at the parent. A leaf that it
            knows and that the base freezes has a gradient of zero.
        snapshot: all leaves.
        population: the members.
        sums: the weighted sum in each block, in float32 or wider.
        state: of the optimizer.

    Returns:
        The steps in each block, and the next state.
    """
    assert spec.es_optimizer is not None  # narrows the type: else each sum is a step
    positions = snapshot.positions
    parents = population.separate([widen(population.parent_block(at)) for at in range(len(sums))])
    totals = population.separate(sums)
    params = {at: widen(leaf) for at, leaf in _frozen(spec, snapshot).items()}
    grads = {at: jnp.zeros_like(leaf) for at, leaf in params.items()}
    params |= {positions[at]: leaf for at, leaf in parents.items()}
    grads |= {positions[at]: -total.astype(parents[at].dtype) for at, total in totals.items()}
    trees = (_tree(snapshot.treedef, len(snapshot.others), leaves) for leaves in (grads, params))
    grads_tree, params_tree = trees
    updates, after = spec.es_optimizer.update(grads_tree, state, params_tree)
    steps = flatten(updates)[0]
    moved = like_before([steps[at] for at in positions], [params[at] for at in positions])
    return list(population.layout.stack(moved)), like_before(after, state)


def statistic_tree(
    spec: CycleSpec, snapshot: Snapshot, leaves: Mapping[int, jax.Array]
) -> optax.Params:
    """A statistic in the structure that `Noise.init` saw.

    A leaf that the noise knows and that the base freezes has a statistic of zero.

    Args:
        spec: says which leaves the noise knows.
        snapshot: all leaves.
        leaves: the statistic of the mutating leaves, by their positions among these.
    """
    frozen = _frozen(spec, snapshot)
    whole = {at: jnp.zeros_like(leaf, sum_dtype(leaf.dtype)) for at, leaf in frozen.items()}
    whole |= {snapshot.positions[at]: leaf for at, leaf in leaves.items()}
    return _tree(snapshot.treedef, len(snapshot.others), whole)


def _frozen(spec: CycleSpec, snapshot: Snapshot) -> dict[int, jax.Array]:
    """The leaves that `strategy_state_of` knows and that the base freezes."""
    params = jax.tree.unflatten(snapshot.treedef, snapshot.others)
    known = known_leaves(spec, params)
    return {at: snapshot.others[at] for at in known if at not in snapshot.positions}


def known_leaves(
    spec: CycleSpec, params: optax.Params, updates: optax.Updates | None = None
) -> tuple[int, ...]:
    """The positions of the leaves that mutate, if the base does not freeze them."""
    return mutating_leaves(params, spec.mutable, updates, integers=moves_integers(spec.noise))


def _is_integer(leaf: Any) -> bool:
    return fixed_point.is_integer(jnp.result_type(leaf))


def _tree(treedef: jax.tree_util.PyTreeDef, count: int, leaves: dict[int, jax.Array]) -> Any:
    """Some leaves of the parameters in their structure."""
    return jax.tree.unflatten(treedef, [leaves.get(at, optax.MaskedNode()) for at in range(count)])
