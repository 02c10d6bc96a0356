"""The base optimizer after a jump: clears its moments, keeps its schedules and counters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax.backend import arithmetic, xla
from egd_optax.backend.derivatives import constant, following
from egd_optax.backend.devices import like_before
from egd_optax.base.arguments import NUMBERS, arrays_of
from egd_optax.base.dependence import depends_on
from egd_optax.base.leaves import aligned, flatten, is_masked

# Maps the state of the base after the step and a fresh one, of the new parameters, to the next.
Reset = Callable[[optax.OptState, optax.OptState], optax.OptState]

# The names in states of optax for the count of steps that corrects the bias of moments.
_COUNTS = ("count", "t", "is_initial_step")


def forget_the_point(state: optax.OptState, jumped: jax.Array) -> optax.OptState:
    """The state after a jump, without the value and the gradient of the parameters before it.

    The line searches of optax keep the value and the gradient of their last point.
    `optax.value_and_grad_from_state` takes these instead of evaluating, unless the value is not
    finite.

    Args:
        state: of the base optimizer.
        jumped: bool `[]`, whether the cycle left the point.
    """

    def forget(node: Any) -> Any:
        if not _is_cache(node):
            return node
        value = jnp.asarray(node.value)
        unknown = jnp.asarray(jnp.inf, value.dtype)
        return node._replace(value=jnp.where(jumped, unknown, value))

    return jax.tree.map(forget, state, is_leaf=_is_cache)


def move_anchors(
    anchors: Sequence[int | None],
    state: optax.OptState,
    updates: Sequence[Any],
    base_updates: Sequence[Any],
    jumped: jax.Array,
) -> optax.OptState:
    """The state after a jump, whose points of the run have jumped too.

    The next updates of the base lead to a place that it counts from this point. They would take the
    jump back.

    Args:
        anchors: see `Traits`.
        state: of the base optimizer after the step.
        updates: of each leaf, those that lead to the new parameters.
        base_updates: of each leaf, those of the base.
        jumped: bool `[]`, whether the cycle left the parent.
    """
    arrays, with_arrays = arrays_of(state, NUMBERS)
    pairs = [(at, leaf) for at, leaf in enumerate(anchors) if leaf is not None]
    pairs = [(at, leaf) for at, leaf in pairs if updates[leaf] is not None]
    if not pairs or not (isinstance(jumped, jax.core.Tracer) or jumped):
        return state

    def move(points: list[Any], to: list[Any], parents: list[Any]) -> list[Any]:
        steps = (
            arithmetic.widen(a) - arithmetic.widen(b) for a, b in zip(to, parents, strict=True)
        )
        return list(map(arithmetic.add, points, steps))

    before = [jnp.asarray(arrays[at]) for at, _ in pairs]
    after_jump = [updates[leaf] for _, leaf in pairs], [base_updates[leaf] for _, leaf in pairs]
    after = xla.run_if(jumped, move, constant(before), *constant(after_jump))
    for (at, _), point in zip(pairs, following(after, before, jumped), strict=True):
        arrays[at] = point
    result: optax.OptState = with_arrays(arrays)
    return result


def reset_after_jump(
    reset: bool | Reset,
    base: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    updates: optax.Updates,
    jumped: jax.Array,
    anchors: Sequence[int | None],
) -> optax.OptState:
    """The base optimizer's state after a jump, without the moments from before.

    Args:
        reset: True resets moments, with the counts that correct their bias. Or a function of the
            state and a fresh one.
        base: the base optimizer.
        state: its state after the step.
        params: the parameters before the step.
        updates: the updates to the new parameters; added only after a jump.
        jumped: bool `[]`, whether the cycle left the parent.
        anchors: see `Traits`; they start anew with the sums that count from them.

    Returns:
        A state of the same structure and dtypes; `state` itself if not `jumped`.

    Raises:
        ValueError: the function returns a state of another structure.
    """
    # `init` saw the parameters without functions. These have no update either.
    arrays, treedef = flatten(params)
    steps = aligned(updates, params)
    moved = [None if by is None else leaf for leaf, by in zip(arrays, steps, strict=True)]
    params, updates = jax.tree.unflatten(treedef, moved), jax.tree.unflatten(treedef, steps)
    of = with_fresh_moments(base, state, params, anchors) if reset is True else reset
    assert callable(of)  # narrows the type: it is not called where nothing is reset

    # Functions and strings in a state are no data of a program.
    held, with_held = arrays_of(state, NUMBERS)

    def renewed(held: list[Any], params: optax.Params, updates: optax.Updates) -> list[Any]:
        old = with_held(held)
        new = of(old, base.init(optax.apply_updates(params, updates)))
        structures = jax.tree.structure(new), jax.tree.structure(old)
        if len(set(structures)) > 1:
            raise ValueError(
                "`reset_base` must return a state of the same structure, got "
                f"{structures[0]} for {structures[1]}: replace arrays only."
            )
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        return like_before([value for was, value in pairs if isinstance(was, NUMBERS)], held)

    if not isinstance(jumped, jax.core.Tracer):  # a loop would be compiled anew on every call
        return with_held(renewed(held, params, updates)) if jumped else state
    held = [jnp.asarray(array) for array in held]
    new = xla.run_if(jumped, renewed, constant(held), *constant((params, updates)))
    return with_held(following(new, held, jumped))


def with_fresh_moments(
    base: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    anchors: Sequence[int | None],
) -> Reset:
    """Returns a function that resets moments.

    Moments are arrays that are shaped like the parameters and start the same everywhere. A point
    of the run starts anew with them. Arrays that start from the parameters and move go on, as the
    second iterate of `optax.contrib.schedule_free` does. So do counters, keys, learned scales and
    schedules.
    """
    with_bools = arrays_of(state, NUMBERS)[1]
    starts_there = depends_on(lambda params: arrays_of(base.init(params), NUMBERS)[0], params)
    moment = jax.tree.map(
        lambda shaped, starts_there, is_anchor: shaped and (is_anchor or not starts_there),
        _shaped_like_params(base, state, params),
        with_bools(starts_there),
        with_bools([at is not None for at in anchors]),
    )
    structure = _structure(params)

    def holds_moments(moment: Any) -> bool:
        return any(_structure(one) == structure and any(jax.tree.leaves(one)) for one in moment)

    def with_fresh_counts(node: Any, fresh: Any, moment: Any) -> Any:
        counts = [name for name in _COUNTS if name in getattr(node, "_fields", ())]
        if not counts or not holds_moments(moment):
            return node
        return node._replace(**{name: getattr(fresh, name) for name in counts})

    def reset(old: optax.OptState, fresh: optax.OptState) -> optax.OptState:
        new = jax.tree.map(lambda old, new, is_one: new if is_one else old, old, fresh, moment)
        return _bottom_up(with_fresh_counts, new, fresh, moment)

    return reset


def _bottom_up(fn: Callable[..., Any], node: Any, *others: Any) -> Any:
    """Maps every named tuple in a tree, after the named tuples inside of it."""

    def is_inner(child: Any) -> bool:
        return child is not node and hasattr(child, "_fields")

    def mapped(child: Any, *its: Any) -> Any:
        return _bottom_up(fn, child, *its) if is_inner(child) else child

    return fn(jax.tree.map(mapped, node, *others, is_leaf=is_inner), *others)


def _shaped_like_params(
    base: optax.GradientTransformationExtraArgs, state: optax.OptState, params: optax.Params
) -> Any:
    """Which arrays of a state are in a tree like the parameters; a pytree of bools."""
    try:
        return optax.tree.map_params(
            base, lambda _: True, state, transform_non_params=lambda _: False
        )
    # Optax calls `init` with a placeholder for the parameters. A base that optax did not make may
    # fail on it. Then any part of the state with their structure counts as a tree like them.
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        structure = _structure(params)
        return jax.tree.map(
            lambda node: jax.tree.map(lambda _: _structure(node) == structure, node),
            state,
            is_leaf=lambda node: _structure(node) == structure,
        )


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree, is_leaf=is_masked)


def _is_cache(node: Any) -> bool:
    """Whether a state holds a value, a number, and a gradient of the same point."""
    if not {"value", "grad"} <= set(getattr(node, "_fields", ())):
        return False
    value = node.value
    return jnp.shape(value) == () and bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))
