"""Notices when `optax.MultiSteps` is around an optimizer that evolves."""

import inspect
import warnings

import optax


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
