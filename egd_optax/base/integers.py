"""Integer leaves that evolve: gradients say nothing of them, and no base moves them."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax.backend import fixed_point
from egd_optax.base.leaves import aligned, flatten, mutating_leaves

_OBJECTIVES = ("value_fn", "accept_value_fn", "base_value_fn")


def integer_leaves(params: optax.Params, mutable: object) -> tuple[int, ...]:
    """The positions of the integer leaves that mutate."""
    leaves, _ = flatten(params)
    mutating = mutating_leaves(params, mutable, integers=True)
    return tuple(at for at in mutating if fixed_point.is_integer(jnp.result_type(leaves[at])))


def with_gradients(grads: optax.Updates, params: optax.Params, mutable: object) -> optax.Updates:
    """The gradients with zeros for integer leaves that mutate, and for float0, which optax refuses.

    A gradient of an integer that mutates may also be None.
    """
    leaves, treedef = flatten(params)
    own, positions = aligned(grads, params), integer_leaves(params, mutable)
    for at, leaf in enumerate(leaves):
        if at in positions or getattr(own[at], "dtype", None) == jax.dtypes.float0:
            own[at] = jnp.zeros_like(leaf)
    return jax.tree.unflatten(treedef, own)


def hidden_from(
    base: optax.GradientTransformationExtraArgs, mutable: object
) -> optax.GradientTransformationExtraArgs:
    """A base that sees no integer leaf that mutates, `optax.MaskedNode` in its place.

    It keeps no moments for them. Arithmetic with int4 leaves would raise an error. Their updates
    are zeros of their own dtype.
    """

    def init(params: optax.Params) -> optax.OptState:
        return base.init(_filled(params, integer_leaves(params, mutable)))

    @functools.wraps(base.update)
    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves, _ = flatten(params)
        positions = integer_leaves(params, mutable)
        own = [leaves[at] for at in positions]
        if positions:
            for name in set(_OBJECTIVES) & set(extra):
                extra[name] = _of_all(extra[name], positions, own)
            if "grad" in extra:  # a line search gets the gradients once more
                extra["grad"] = _filled(extra["grad"], positions, like=params)
        hidden = (_filled(tree, positions, like=params) for tree in (updates, params))
        found, state = base.update(next(hidden), state, next(hidden), **extra)
        return _filled(found, positions, list(map(jnp.zeros_like, own)), params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _of_all(fn: Callable[..., Any], positions: Sequence[int], own: Sequence[Any]) -> Any:
    """An objective of all leaves as one of those that the base sees."""

    @functools.wraps(fn)
    def value_fn(params: optax.Params, *args: Any, **kwargs: Any) -> Any:
        return fn(_filled(params, positions, own), *args, **kwargs)

    return value_fn


def _filled(
    tree: Any, positions: Sequence[int], leaves: Sequence[Any] = (), like: Any = None
) -> Any:
    """A tree with other leaves at some positions, `optax.MaskedNode` without any."""
    if not positions:
        return tree
    like = tree if like is None else like
    own = aligned(tree, like)
    for index, at in enumerate(positions):
        own[at] = leaves[index] if leaves else optax.MaskedNode()
    return jax.tree.unflatten(flatten(like)[1], own)
