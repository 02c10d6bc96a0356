"""The child through an optax transformation, and what a strategy keeps from cycle to cycle."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._cycle.parent import Genome, Parent, flatten, mutating_leaves, plus, widened
from egd_optax._cycle.spec import CycleSpec, Leaves, StrategyState
from egd_optax.accept import Accept


def strategy_state_of(spec: CycleSpec, params: optax.Params) -> StrategyState:
    """Makes the first state, with `es_optimizer`'s in float32 or wider.

    `es_optimizer` sees the mutating leaves of the parameters, and `optax.MaskedNode` in the place
    of others.
    """
    if spec.goes_straight:
        of_optimizer = spec.es_optimizer.init(())  # has no state: no leaf need be widened
    else:
        leaves, treedef = flatten(params)
        mutating = mutating_leaves(params, spec.mutable)
        known = _tree(treedef, len(leaves), {at: widened(leaves[at]) for at in mutating})
        of_optimizer = spec.es_optimizer.init(known)
    # Else a Python number would have another dtype in the first state than in the next ones.
    of_rule = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), spec.accept.init(params)
    )
    return StrategyState(es_optimizer=of_optimizer, accept=of_rule)


def check_strategy_state(spec: CycleSpec, state: Any, params: optax.Params) -> None:
    """Refuses the state of another strategy, which would be dropped or fail further in.

    Raises:
        TypeError: it is no `StrategyState`.
        ValueError: it is that of another `es_optimizer` or `accept`.
    """
    if not isinstance(state, StrategyState):
        raise TypeError(
            f"`state.strategy_state` must be a StrategyState, got {type(state).__name__}: restore "
            "it into the structure of `tx.init(params)`."
        )
    if spec.goes_straight and type(spec.accept).init is Accept.init and not jax.tree.leaves(state):
        return  # keeps nothing, and holds nothing: nothing need be traced
    expected = jax.eval_shape(lambda: strategy_state_of(spec, params))
    for name in StrategyState._fields:
        found: Any = jax.tree.structure(getattr(state, name))
        fresh: Any = jax.tree.structure(getattr(expected, name))
        if found != fresh:
            raise ValueError(
                f"`state.strategy_state.{name}` must be that of `{name}`, got {found} where that "
                f"is {fresh}: call `tx.init(params)` of this optimizer, or pass it the `{name}` "
                "that the state was made with."
            )


def stepped(
    es_optimizer: optax.GradientTransformationExtraArgs,
    parent: Parent,
    genome: Genome,
    mutable: object,
    total: Leaves,
    state: optax.OptState,
) -> tuple[Leaves, optax.OptState]:
    """Steps from a parent along the sum that its members recombine to.

    Args:
        es_optimizer: takes minus the sum as the gradient at the parent.
        parent: which leaves mutate, and how they stand together.
        genome: the mutating leaves of the parent.
        mutable: which leaves the optimizer knows; one that the base freezes has a gradient of zero.
        total: the sum, in float32 or wider.
        state: what the optimizer kept.

    Returns:
        The mutating leaves of the child, and what the optimizer keeps.
    """
    own, sums = parent.wide_leaves(genome.leaves()), parent.wide_leaves(total)
    count = len(parent.leaves)
    everywhere = jax.tree.unflatten(parent.treedef, parent.leaves)
    known = {at: widened(parent.leaves[at]) for at in mutating_leaves(everywhere, mutable)}
    params = known | dict(zip(parent.mutating, own, strict=True))
    grads = {at: jnp.zeros_like(leaf) for at, leaf in known.items()}
    grads |= {at: -by for at, by in zip(parent.mutating, sums, strict=True)}
    updates, after = es_optimizer.update(
        _tree(parent.treedef, count, grads), state, _tree(parent.treedef, count, params)
    )
    steps = flatten(updates)[0]
    child = [plus(leaf, steps[at]) for at, leaf in zip(parent.mutating, own, strict=True)]
    after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, state)
    return genome.reached(parent.entries_of(child)), after


def _tree(treedef: jax.tree_util.PyTreeDef, count: int, leaves: dict[int, jax.Array]) -> Any:
    """Some leaves of the parameters in their structure."""
    return jax.tree.unflatten(treedef, [leaves.get(at, optax.MaskedNode()) for at in range(count)])
