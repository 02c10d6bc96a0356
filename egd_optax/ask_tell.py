"""Ask and tell: an evolution cycle whose fitness comes from outside.

`ask` takes the step of the base and opens a cycle. `member` makes candidates, anywhere. `tell`
takes their fitness, and returns the next round or, in the end, updates and state.

>>> import jax.numpy as jnp, optax
>>> from egd_optax import ask_tell, evolve
>>> tx = evolve(optax.sgd(0.1), sigma=0.3)
>>> params = jnp.linspace(1.0, 2.0, 4)
>>> def score(params): return float(jnp.sum(jnp.round(params)))  # elsewhere, and it may take hours
>>> asked, state = ask_tell.ask(tx, jnp.zeros(4), tx.init(params), params)
>>> while isinstance(asked, ask_tell.Asked):
...   ticket, parent = asked.ticket, asked.parent
...   fitness = [score(ask_tell.member(ticket, parent, i)) for i in range(ticket.size)]
...   asked, state = ask_tell.tell(tx, asked, fitness, state, params)
>>> params = optax.apply_updates(params, asked)
>>> int(state.cycle), bool(score(params) <= state.info.parent_fitness)
(1, True)

The updates and the state have the bits of the same cycle in one `tx.update` within `jax.jit`, if
the fitness has. The rounds are those of `core/generation.py` without their evaluations. They draw,
sum and choose as those do.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax import _asked
from egd_optax._asked import Asked
from egd_optax._axes import check_axes
from egd_optax._checks import check_flag
from egd_optax._gradients import gradients
from egd_optax._state import EvolveState, check_state, holds_evolve
from egd_optax._step import Step
from egd_optax._ticket import Parent, Ticket, member, settings_of
from egd_optax.core.fitness import fitness_dtype

__all__ = ["Asked", "Parent", "Ticket", "ask", "member", "tell"]


def ask(
    tx: optax.GradientTransformation,
    updates: optax.Updates | None,
    state: EvolveState,
    params: optax.Params,
    *,
    accept_fitness: bool = False,
    base_value_fn: Callable[..., Any] | None = None,
    **extra_args: Any,
) -> tuple[Asked, EvolveState]:
    """Takes the step of the base, and opens a cycle around the parameters that it leads to.

    It may be in `jax.jit`, behind the gradient for example. It opens a cycle on every call:
    `is_due` tells on which steps `update` would. A base in `optax.MultiSteps` skips steps, on
    which `state.count` stays: do not ask there. Do not donate `params`: `tell` needs them.

    Args:
        tx: what `evolve` or `egd` returned. Its settings are read from there, so that
            they cannot differ from those of `tx.update`. A wrapper like `optax.chain` changes what
            `update` does, and is refused: put other transformations into the base.
        updates: pytree, the gradients; None for a base that looks at none.
        state: the state before the step.
        params: pytree, the parameters before the step.
        accept_fitness: whether `accept` compares parent, best member and child by another fitness,
            as `accept_value_fn` would give it. Each generation then has one more round.
        base_value_fn: the objective of a base that evaluates one itself, as a line search does.
        **extra_args: passed to the base, as far as it takes them. The parent holds those that
            `refine` names, for whoever makes a member.

    Returns:
        The open cycle, which asks for the members of the first generation; and the state after the
        step of the base, for `tell`. Both are pytrees, and can be pickled or stored until then.

    Raises:
        TypeError: an argument is of the wrong type, or `value_fn` is passed, or `params` hold
            functions.
        ValueError: the rule of acceptance compares nothing, `tx` has `aux` or holds another
            `evolve`, or what `update` raises.

    Cost:
        The step of the base. `evaluate`, `population_axis` and `candidate_batch_size` have no
        effect: candidates are formed, and divided by whoever evaluates them.

    References:
        The interface is that of Collette et al., `On Object-Oriented Programming of Optimizers
        <https://doi.org/10.1002/9781118600153.ch14>`_, 2010. Workers that know members by their
        random seeds: Salimans et al., `Evolution Strategies as a Scalable Alternative to
        Reinforcement Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import ask_tell, evolve
        >>> tx, params = evolve(optax.adam(0.1), generations=2), jnp.ones(3)
        >>> @jax.jit
        ... def opening(params, state):
        ...   return ask_tell.ask(tx, jax.grad(jnp.sum)(params), state, params)
        >>> asked, state = opening(params, tx.init(params))
        >>> int(state.count), int(state.cycle), asked.ticket.size
        (1, 0, 8)
    """
    step = _step_of(tx)
    _check_ask(step, accept_fitness, state, extra_args)
    _check_arrays(params)
    functions = {"value_fn": None, "base_value_fn": base_value_fn}
    base_args = step.base_args(state.base_state, functions, False, extra_args)
    updates = gradients(step, updates, state.base_state, params, base_args)
    base_updates, after = step.update(
        updates, state, params, base_value_fn=base_value_fn, evolve=False, **extra_args
    )
    traits = step.black_box.traits(updates, state.base_state, params, base_args)
    mutating = step.mutating(traits, params, base_updates)
    asked = _asked.opened(
        tx.update, mutating, traits.anchors, accept_fitness, params, base_updates, after
    )
    if step.spec.refine is not None:
        parent = asked.parent._replace(extra_args=step.spec.refine.taken(extra_args))
        asked = dataclasses.replace(asked, parent=parent)
    return asked, after


def tell(
    tx: optax.GradientTransformation,
    asked: Asked,
    fitness: jax.typing.ArrayLike | Sequence[float],
    state: EvolveState,
    params: optax.Params,
) -> tuple[Asked | optax.Updates, EvolveState]:
    """Goes on with an open cycle, from the fitness of the candidates that it asks for.

    A generation has a round for its members. It has one for the child if `accept` compares, and
    one for parent, best member and child with `accept_fitness`. A round may be told twice: all that
    it needs is in its arguments.

    Args:
        tx: the optimizer that was asked; in another process one with the same settings.
        asked: the open cycle.
        fitness: `[asked.ticket.size]`, real numbers of at least float32, lower is better. NaN for a
            candidate that is missing, or failed: it counts as worst.
        state: as `ask` returned it.
        params: as `ask` got them.

    Returns:
        The next round, an `Asked`, with the same state. After the last round the updates, with
        the state after the step. They are those of `tx.update`.

    Raises:
        TypeError: an argument is of the wrong type, or the fitness is not real or below float32.
        ValueError: `asked` is of another optimizer or another run, or is older than the state. The
            fitness has another length.

    Cost:
        A draw for each member with a weight, twice if `accept` compares, and one for the best
        member if that is taken. With `refine` each of these learns again. Each kind of round
        compiles once.

    Example:
        The second of four members is lost, and the child is never looked at.

        >>> import jax.numpy as jnp, math, optax
        >>> from egd_optax import accept, ask_tell, evolve
        >>> tx = evolve(optax.sgd(0.1), population_size=4, accept=accept.always())
        >>> params = jnp.ones(3)
        >>> asked, state = ask_tell.ask(tx, jnp.zeros(3), tx.init(params), params)
        >>> updates, state = ask_tell.tell(tx, asked, [0.5, math.nan, 0.2, 0.9], state, params)
        >>> round(float(state.info.best_fitness), 3), int(state.cycle)
        (0.2, 1)
    """
    step = _step_of(tx)
    _check_tell(step, asked, state)
    generations = step.spec.generations
    last = generations == 1 or int(asked.ticket.generation) + 1 == generations
    numbers = _checked_fitness(fitness, asked.ticket)
    found = _asked.told(tx.update, last, asked, numbers, params, state)
    return (found, state) if isinstance(found, Asked) else found


def _step_of(tx: Any) -> Step:
    """The step whose method `tx.update` is."""
    step = getattr(getattr(tx, "update", None), "__self__", None)
    if not isinstance(step, Step):
        raise TypeError(
            f"`tx` must be what `evolve` or `egd` returned, got {tx!r}: put `optax.chain` and "
            "other wrappers into the base, `evolve(optax.chain(...))`."
        )
    return step


def _check_ask(step: Step, accept_fitness: Any, state: Any, extra_args: dict[str, Any]) -> None:
    check_flag("accept_fitness", accept_fitness)
    check_state(state, step.spec)
    check_axes(step.spec.execution)
    for name in ("value_fn", "accept_value_fn", "evolve"):
        if name in extra_args:
            raise TypeError(
                f"`{name}` must be left out of `ask`, got {extra_args[name]!r}: fitness comes by "
                "`tell`. Pass a line search its loss as `base_value_fn`."
            )
    if accept_fitness and not step.spec.accept.compares:
        raise ValueError(
            f"`accept_fitness` must be False with accept={step.spec.accept!r}, got True: that rule "
            "compares nothing. Use `accept.improved()` or `accept.best()`."
        )
    if step.spec.aux is not None:
        raise ValueError(
            f"`aux` must be None for `ask`, got {step.spec.aux!r}: `tell` takes the fitness alone. "
            "Keep all else where it is measured."
        )
    if holds_evolve(state.base_state):
        raise ValueError(
            f"`tx` must hold no other `evolve` in its base, got {step.base!r}: only one cycle can "
            "be open."
        )


def _check_arrays(params: optax.Params) -> None:
    """A parent is stored and sent: it holds no functions."""
    for leaf in jax.tree.leaves(params):
        if callable(leaf) or isinstance(leaf, str):
            raise TypeError(
                f"`params` must hold arrays alone for `ask`, got {leaf!r} in them: split functions "
                "off, as `equinox.partition(model, equinox.is_array)` does, and let whoever "
                "evaluates a member put them back."
            )


def _check_tell(step: Step, asked: Any, state: Any) -> None:
    if not isinstance(asked, Asked):
        raise TypeError(
            f"`asked` must be an open cycle, got {type(asked).__name__}: pass what `ask` or `tell` "
            "returned. After the last round these are the updates."
        )
    check_state(state, step.spec)
    ticket, settings = asked.ticket, settings_of(step.spec)
    if ticket.settings != settings:
        raise ValueError(
            f"`asked` must be of this optimizer, got a ticket of {ticket.settings} for "
            f"{settings}: tell the optimizer that was asked, or one with its settings."
        )
    leaves = jax.tree.leaves((ticket, state.key_data, state.count, state.cycle))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    if not np.array_equal(ticket.key, state.key_data):
        raise ValueError(
            f"`asked` must be of the run of `state`, got the key {ticket.key} for "
            f"{state.key_data}: pass the state that `ask` returned."
        )
    own, now = ticket.time[:2], (int(state.count), int(state.cycle))
    if own != now:
        raise ValueError(
            f"`asked` must be of the step of `state`, got a ticket of step and cycle {own}, which "
            f"is {'older' if own < now else 'newer'} than the state of {now}: drop it, and ask "
            "again, or pass the state that `ask` returned."
        )


def _checked_fitness(fitness: Any, ticket: Ticket) -> jax.Array | np.ndarray:
    """The fitness in its dtype, as it was told."""
    values = fitness if isinstance(fitness, jax.Array) else np.asarray(fitness)
    must = "`fitness` must be one real number of at least float32 for each candidate, got"
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    is_real = any(jnp.issubdtype(values.dtype, kind) for kind in kinds)
    if not is_real or (
        jnp.issubdtype(values.dtype, jnp.floating) and jnp.finfo(values.dtype).bits < 32
    ):
        raise TypeError(
            f"{must} {values.dtype}: compute it in float32, and write `math.nan` for a candidate "
            "that is missing."
        )
    if values.shape != (ticket.size,):
        raise ValueError(
            f"{must} shape {values.shape} for {ticket.size} candidates of the kind "
            f"{ticket.kind!r}: write `math.nan` for one that is missing."
        )
    with np.errstate(over="ignore"):  # a value too large for float32 is infinite
        return values.astype(fitness_dtype())
