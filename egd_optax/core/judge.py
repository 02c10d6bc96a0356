"""Accept: parent, best member and child are compared, and the rule chooses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._checks import checked_state
from egd_optax.accept import BEST, CHILD, PARENT, Accept
from egd_optax.backend import random, xla
from egd_optax.backend.devices import Devices, like_before
from egd_optax.backend.memory import Memory, memory_of
from egd_optax.backend.packing import Arrays
from egd_optax.core import auxiliary
from egd_optax.core.auxiliary import Evaluated, Seen
from egd_optax.core.evaluate import Scored
from egd_optax.core.fitness import fitness_dtype
from egd_optax.core.population import OF_ACCEPTANCE, Candidate, Population

# Evaluates a candidate that is formed, with its sign and whether it counts, by another objective.
Score = Callable[[Population, Candidate, jax.Array, jax.Array], Evaluated]


def judged(
    score: Score,
    population: Population,
    devices: Devices,
    child: Candidate,
    best: jax.Array | None,
    seen: Seen | None,
) -> tuple[jax.Array, Seen | None]:
    """Evaluates parent, best member and child on data that they were not selected on.

    Args:
        score: evaluates one.
        population: draws them.
        devices: all evaluate the same.
        child: the child.
        best: which member is the best, int32 `[]`; None if it is not asked for.
        seen: the aux so far.

    Returns:
        The fitness of the three, `[3]`, +inf if not asked for; and the aux after them.
    """
    which = jnp.array([0, 2] if best is None else [0, 1, 2], jnp.int32)

    def trip(index: jax.Array, carry: Any) -> Any:
        held, values, seen = carry
        turn, sign = which[index], jnp.zeros([], jnp.float32)
        if best is not None:
            held = population.redraw_into(held, best, (turn == 1) & (best > 0))
            sign = jnp.where(turn == 1, population.sign_of(best), sign)
        held = xla.run_if(turn == 2, lambda _, child: child, held, child)
        inside, sign = xla.no_hoist(population, sign)
        evaluated = devices.pick(score(inside, held, sign, devices.rank() == 0))
        return held, values.at[turn].set(evaluated.value), auxiliary.added(seen, evaluated)

    start = population.parent(), jnp.full([3], jnp.inf, fitness_dtype()), seen
    _, values, seen = xla.loop(0, which.size, trip, start)
    return values, seen


def best_into(
    population: Population, mode: str | Memory, scored: Scored, best: jax.Array, pred: jax.Array
) -> Candidate:
    """The best member in the memory of the child if `pred` holds, else the child.

    One that learned is taken as it was kept, and does not learn again.
    """
    slots, held = scored.slots, scored.held
    if population.refined is None or slots is None:
        return population.form_into(held, best, pred)
    memory = memory_of(mode, slots.member.size)

    def fetched(whole: Arrays, slot: jax.Array, leaves: Arrays) -> Arrays:
        del slot
        return tuple(memory.fetch(*pair)[0] for pair in zip(leaves, whole, strict=True))

    whole = memory.fold(scored.pages, (slots.member == best) & pred, fetched, held.whole)
    return held._replace(whole=whole)


def choose(
    rule: Accept,
    key: jax.Array,
    fitness: tuple[jax.Array, jax.Array, jax.Array],
    best: jax.Array,
    moved: jax.Array,
    state: Any,
) -> tuple[jax.Array, Any]:
    """Chooses the result of a generation: PARENT, BEST or CHILD, int32 `[]`.

    Args:
        rule: chooses.
        key: of the generation, uint32 `[2]`.
        fitness: of parent, best member and child, `[]` each, +inf if not finite.
        best: which member is the best, int32 `[]`; 0 is the parent.
        moved: bool `[]`, whether the child differs from the parent.
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
    """The choice and the state that a rule returned, the state in the dtypes that it had."""
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
    return choice, like_before(checked_state("accept.choose", rule, after, state), state)
