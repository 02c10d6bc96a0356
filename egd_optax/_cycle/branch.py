"""A branch that leaves the buffers it does not touch alone."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

T = TypeVar("T")


def when(pred: jax.Array, fn: Callable[..., T], carry: T, *operands: Any) -> T:
    """Returns `fn(carry, *operands)` where `pred` holds, else `carry`.

    A loop of no or one trip rather than `lax.cond`, for two reasons. XLA threads
    the carry of a loop through in place, where it may copy what both branches of
    a conditional return. And XLA never fuses across the body of a loop whose trip
    count it cannot know: what is computed inside is rounded in the same way
    wherever the same body stands, which keeps the memory modes equal to the bit.

    Args:
        pred: bool `[]`.
        fn: maps the carry to a carry of the same structure, shapes and dtypes.
        carry: pytree of arrays.
        *operands: pytrees of arrays. Whatever `fn` computes from these alone stays
            inside: XLA would move what it computes from captured arrays out of the
            loop, hence do it for all branches at once, taken or not.

    Returns:
        A pytree like `carry`.
    """

    def body(_: jax.Array, value: T) -> T:
        return fn(*lax.optimization_barrier((value, *operands)))

    result: T = lax.fori_loop(0, pred.astype(jnp.int32), body, carry)
    return result


def apart(pred: jax.Array, fn: Callable[..., T], *operands: Any) -> T:
    """Returns `fn(*operands)` where `pred` holds, else zeros, computed apart from the rest.

    XLA computes anew, for every entry of what it is fused into, what it counts as cheap: a
    normal number too. It does not fuse across the boundary of a loop.
    """
    blank = jax.tree.map(jnp.zeros_like, fn(*operands))  # of its shapes; nothing is computed
    result: T = when(pred, lambda _, *values: fn(*values), blank, *operands)
    return result
