"""The base optimizer after a jump: clears its moments, keeps its schedules and counters."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax.backend import xla
from egd_optax.backend.derivatives import constant, following
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


def reset_after_jump(
    reset: bool | Reset,
    base: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    updates: optax.Updates,
    jumped: jax.Array,
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
    of = with_fresh_moments(base, state, params) if reset is True else reset
    assert callable(of)  # narrows the type: it is not called where nothing is reset

    def renewed(old: Any, params: optax.Params, updates: optax.Updates) -> Any:
        new = of(old, base.init(optax.apply_updates(params, updates)))
        structures = jax.tree.structure(new), jax.tree.structure(old)
        if len(set(structures)) > 1:
            raise ValueError(
                "`reset_base` must return a state of the same structure, got "
                f"{structures[0]} for {structures[1]}: replace arrays only."
            )
        return jax.tree.map(
            lambda new, old: lax.convert_element_type(new, jnp.result_type(old)), new, old
        )

    if not isinstance(jumped, jax.core.Tracer):  # a loop would be compiled anew on every call
        return renewed(state, params, updates) if jumped else state
    new = xla.run_if(jumped, renewed, constant(state), *constant((params, updates)))
    return following(new, state, jumped)


def with_fresh_moments(
    base: optax.GradientTransformationExtraArgs, state: optax.OptState, params: optax.Params
) -> Reset:
    """Returns a function that resets moments.

    Moments are arrays that are shaped like the parameters and start the same everywhere. Arrays
    that start from the parameters go on, as the second iterate of `optax.contrib.schedule_free`
    does. So do counters, keys, learned scales and schedules.
    """
    moment = jax.tree.map(
        lambda shaped, starts_there: shaped and not starts_there,
        _shaped_like_params(base, state, params),
        depends_on(base.init, params),
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
