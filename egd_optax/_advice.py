"""What to write instead: where `value_fn` fails, and where a wrapper would waste cycles."""

from collections.abc import Iterator
import contextlib
import inspect
import sys
import warnings

import jax
import optax


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


def warn_inside_multi_steps() -> None:
    """Warns if `optax.MultiSteps` is calling: it would run a due cycle k times.

    It calls the optimizer that it wraps on every micro-step and drops all results but
    the last, and passes nothing that tells which. Hence the look at who is calling.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.update.__code__:
            warnings.warn(
                "optax.MultiSteps runs a due cycle on each of its k micro-steps and keeps the "
                "last: accumulate inside instead, `evolve(optax.MultiSteps(base, k)"
                ".gradient_transformation(), evolve_every=n * k)`, or decide when to evolve, "
                "`update(..., evolve=micro_step % (n * k) == 0)`.",
                stacklevel=3,
            )
            return
        frame = frame.f_back
