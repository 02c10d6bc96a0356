"""Which evaluations count: devices in step evaluate some members more than once.

A function that XLA computes may be computed for nothing. One that calls Python may not: whoever
evaluates says here, while `value_fn` is traced, which of the results are used.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax
import jax.numpy as jnp

_COUNTS: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("counts", default=None)


@contextlib.contextmanager
def counted(counts: jax.Array) -> Iterator[None]:
    """Traces `value_fn` for results that are used where `counts`, bool `[]`, holds."""
    token = _COUNTS.set(counts)
    try:
        yield
    finally:
        _COUNTS.reset(token)


def counts() -> jax.Array:
    """Whether the result of the evaluation that is traced is used, bool `[]`."""
    known = _COUNTS.get()
    return jnp.ones([], jnp.bool_) if known is None else known
