"""Large arrays on CPU, piece by piece."""

import itertools
import threading
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._jax import io_callback

# The part of an array that XLA:CPU hands over at a time, in bytes. JAX gives a callback arrays of
# its own, which XLA:CPU copies on a thread of the pool that programs run on. If all threads wait
# for the callback, on several devices for example, it never copies. Below 100 KiB it copies in
# place.
PIECE = 96 * 1024

# A ticket tells the calls of several devices apart.
TICKET = jax.ShapeDtypeStruct((), jnp.int32)
_TICKETS = itertools.count()
_WAITING: dict[int, dict[int, list[np.ndarray]]] = {}
_LOCK = threading.Lock()


def opened() -> np.int32:
    """Opens a ticket for the arrays of one call."""
    with _LOCK:
        ticket = next(_TICKETS) % 2**31
        _WAITING[ticket] = {}
    return np.int32(ticket)


def _received(ticket: Any, at: Any, piece: Any) -> np.int32:
    with _LOCK:
        _WAITING[int(ticket)].setdefault(int(at), []).append(np.array(piece))
    return np.int32(ticket)


def taken(ticket: int) -> dict[int, list[np.ndarray]]:
    """Closes a ticket; returns its pieces, by the position of their array."""
    with _LOCK:
        return _WAITING.pop(ticket)


def sent(ticket: jax.Array, at: int, leaf: jax.Array) -> jax.Array:
    """The ticket, when all of the leaf was received: each piece waits for the one before."""
    flat = leaf.reshape(-1)
    size = PIECE // flat.dtype.itemsize

    def send(ticket: jax.Array, piece: jax.Array) -> jax.Array:
        after: jax.Array = io_callback(_received, TICKET, ticket, np.int32(at), piece)
        return after

    whole = flat.size // size
    ticket = lax.fori_loop(
        0,
        whole,
        lambda index, ticket: send(ticket, lax.dynamic_slice_in_dim(flat, index * size, size)),
        ticket,
    )
    return send(ticket, flat[whole * size :]) if whole * size < flat.size else ticket
