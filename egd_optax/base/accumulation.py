"""Steps that `optax.MultiSteps` in the base skips: these count as none."""

import jax
import jax.numpy as jnp
import optax


def skipped(before: optax.OptState, after: optax.OptState) -> jax.Array | None:
    """Whether the base skipped a step, as `should_skip_update_fn` of `optax.MultiSteps` asks for.

    A skipped step adds nothing to the sum of gradients. If it were counted, all later cycles would
    fall between two real steps.

    Args:
        before: the state of the base before the step.
        after: its state after the step.

    Returns:
        bool `[]`, true if every `MultiSteps` in the base skipped the step; None if there is none.
    """
    pairs = zip(_accumulators(before), _accumulators(after), strict=True)
    stays = [
        (old.mini_step == new.mini_step) & (old.gradient_step == new.gradient_step)
        for old, new in pairs
    ]
    return jnp.all(jnp.stack(stays)) if stays else None


def _accumulators(state: optax.OptState) -> list[optax.MultiStepsState]:
    nodes = jax.tree.leaves(state, is_leaf=_is_accumulator)
    return [node for node in nodes if _is_accumulator(node)]


def _is_accumulator(node: object) -> bool:
    return isinstance(node, optax.MultiStepsState)
