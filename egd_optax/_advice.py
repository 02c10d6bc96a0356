"""What to write instead, where `value_fn` fails with an error of JAX or Flax."""

from collections.abc import Iterator
import contextlib
import sys

import jax


@contextlib.contextmanager
def advice_on_value_fn() -> Iterator[None]:
    """Adds a note to errors that mean that `value_fn` holds what it must not hold.

    An array that leaked from another trace is noticed by JAX when the program around it
    runs: here outside of `jax.jit`, else when the caller's jitted step runs.
    """
    try:
        yield
    except Exception as error:
        flax_errors = sys.modules.get("flax.errors")  # there if a Flax model is
        if isinstance(error, jax.errors.UnexpectedTracerError):
            error.add_note(
                "`value_fn` uses an array that a traced function stored away: pass it as an "
                "argument, `tx.update(grads, state, params, value_fn=value_fn, batch=batch)` "
                "with `value_fn(params, batch)`."
            )
        elif flax_errors and isinstance(error, flax_errors.TraceContextError):
            error.add_note(
                "`value_fn` changes an NNX module that it captured: pass "
                "`value_fn=egd_optax.flax.nnx_value_fn(model, loss)`, which scores a copy."
            )
        raise
