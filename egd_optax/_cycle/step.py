"""Step: the direction that a generation found, through an optax transformation, as a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._cycle.parent import Genome, Parent, flatten, mutating_leaves, plus, widened
from egd_optax._cycle.spec import Leaves


def step_state_of(
    step: optax.GradientTransformationExtraArgs | None, params: optax.Params, mutable: object
) -> optax.OptState:
    """What `step` starts with, of leaves in float32 or wider; nothing where there is no `step`.

    It sees the mutating leaves of the parameters, and `optax.MaskedNode` in the place of others.
    """
    if step is None:
        return optax.EmptyState()
    leaves, treedef = flatten(params)
    mutating = mutating_leaves(params, mutable)
    return step.init(_tree(treedef, len(leaves), {at: widened(leaves[at]) for at in mutating}))


def stepped(
    step: optax.GradientTransformationExtraArgs,
    parent: Parent,
    genome: Genome,
    mutable: object,
    total: Leaves,
    state: optax.OptState,
) -> tuple[Leaves, optax.OptState]:
    """Where `step` leads to from a parent, along the sum that its members recombine to.

    Args:
        step: takes parent - (parent + sum) as the gradient at the parent.
        parent: which leaves mutate, and how they stand together.
        genome: the mutating leaves of the parent.
        mutable: which leaves `step` knows; one that the base freezes has a gradient of zero.
        total: the sum, in float32 or wider.
        state: what `step` kept.

    Returns:
        The mutating leaves of the child, and what `step` keeps.
    """
    own, sums = parent.wide_leaves(genome.leaves()), parent.wide_leaves(total)
    count = len(parent.leaves)
    everywhere = jax.tree.unflatten(parent.treedef, parent.leaves)
    known = {at: widened(parent.leaves[at]) for at in mutating_leaves(everywhere, mutable)}
    params = known | dict(zip(parent.mutating, own, strict=True))
    grads = {at: jnp.zeros_like(leaf) for at, leaf in known.items()}
    grads |= {at: -by for at, by in zip(parent.mutating, sums, strict=True)}
    updates, after = step.update(
        _tree(parent.treedef, count, grads), state, _tree(parent.treedef, count, params)
    )
    steps = flatten(updates)[0]
    child = [plus(leaf, steps[at]) for at, leaf in zip(parent.mutating, own, strict=True)]
    after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, state)
    return genome.reached(parent.entries_of(child)), after


def _tree(treedef: jax.tree_util.PyTreeDef, count: int, leaves: dict[int, jax.Array]) -> Any:
    """Some leaves of the parameters in their structure."""
    return jax.tree.unflatten(treedef, [leaves.get(at, optax.MaskedNode()) for at in range(count)])
