"""Accept: the rule chooses, and the library checks what it chose."""

from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._checks import checked_state
from egd_optax.accept import BEST, CHILD, PARENT, Accept
from egd_optax.backend import random
from egd_optax.core.population import OF_ACCEPTANCE


def choose(
    rule: Accept,
    key: jax.Array,
    fitness: tuple[jax.Array, jax.Array, jax.Array],
    best: jax.Array,
    moved: jax.Array,
    state: Any,
) -> tuple[jax.Array, Any]:
    """Chooses what a generation ends with: PARENT, BEST or CHILD, int32 `[]`.

    Args:
        rule: chooses.
        key: of the generation, uint32 `[2]`.
        fitness: of parent, best member and child, `[]` each, +inf if not finite.
        best: which member is the best, int32 `[]`; 0 is the parent.
        moved: bool `[]`, whether the child is any other than the parent.
        state: of the rule.

    Returns:
        The choice, PARENT if the rule may not take the other two, and the next state of the rule.

    Raises:
        TypeError: the rule returns no integer, or no tuple of a choice and a state.
        ValueError: the choice is no scalar, or the state is not like the one before.
    """
    own_key = random.derive(key, OF_ACCEPTANCE, 0)
    own_key = jax.random.wrap_key_data(own_key, impl="threefry2x32")
    choice, after = _checked(rule, rule.choose(own_key, *fitness, state), state)
    _, fitness_of_best, fitness_of_child = fitness
    takes_child = choice == CHILD
    if not rule._ties_go_to_parent:
        takes_child &= moved
    if rule.compares:
        takes_child &= jnp.isfinite(fitness_of_child)
    chosen = jnp.where(takes_child, CHILD, PARENT)
    if rule.takes_best:
        takes_best = (choice == BEST) & (best > 0) & jnp.isfinite(fitness_of_best)
        chosen = jnp.where(takes_best, BEST, chosen)
    return chosen.astype(jnp.int32), after


def _checked(rule: Accept, result: Any, state: Any) -> tuple[jax.Array, Any]:
    """What a rule returned, with arrays of the dtypes that its state had."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"`accept.choose` must return a choice and a state, got {result!r} from {rule!r}: "
            "write `return accept.CHILD, state`, for example."
        )
    choice, after = jnp.asarray(result[0]), result[1]
    must = "`accept.choose` must return `accept.PARENT`, `accept.BEST` or `accept.CHILD`, an"
    fix = "write `jnp.where(taken, accept.CHILD, accept.PARENT)`"
    got = f"got {choice.dtype} {list(choice.shape)} from {rule!r}: {fix}"
    if not jnp.issubdtype(choice.dtype, jnp.integer):
        raise TypeError(f"{must} integer, {got}.")
    if choice.shape != ():
        raise ValueError(f"{must} integer of shape [], {got}.")
    return choice, checked_state("accept.choose", rule, after, state)
