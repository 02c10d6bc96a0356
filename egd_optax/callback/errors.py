"""Errors on CPU: all devices that are told what a call found raise together.

Where one device raises alone, the others wait for it until XLA ends the process.
"""

import itertools
import threading
from typing import Any

import jax
import numpy as np

from egd_optax._jax import buffer_callback

_NUMBERS = itertools.count()
_ERRORS: dict[int, BaseException] = {}
_LOCK = threading.Lock()


def failed_with(error: BaseException) -> np.int32:
    """The number of an error, from 1; the latest one is kept."""
    with _LOCK:
        number = next(_NUMBERS) % 2**31 + 1
        _ERRORS.clear()
        _ERRORS[number] = error
    return np.int32(number)


def _raise(context: Any, out: Any, failed: Any) -> None:
    del context, out
    raise _ERRORS.get(int(np.asarray(failed)), RuntimeError("`fn` failed in another process."))


def raised(found: list[jax.Array], failed: jax.Array) -> list[jax.Array]:
    """Raises on every device that comes here."""
    values, *others = found
    nothing = jax.ShapeDtypeStruct((), values.dtype)
    zero: jax.Array = buffer_callback(_raise, nothing)(failed)
    return [values + zero, *others]
