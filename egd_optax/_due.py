"""On which steps a cycle runs."""

from typing import Any

import jax
import jax.numpy as jnp


def is_due(step: Any, evolve_every: Any, window: tuple[int, int | None] | None = None) -> Any:
    """Whether a cycle runs on a step: on steps N, 2N, ... where N is `evolve_every`.

    For a host loop that decides itself, with a program for either kind of step. The
    idle program then costs exactly what the base optimizer costs.

    Args:
        step: number of the step, counted from 1, an int or an int array `[]`. The next
            step is `state.count + 1`.
        evolve_every: steps between cycles, at least 1.
        window: of the optimizer: steps up to the first number, and behind the second one, have no
            cycle; None for all steps.

    Returns:
        A bool for a Python or NumPy int, else a bool array `[]`.

    Raises:
        ValueError: `step` is a Python int below 1.

    Example:
        >>> from egd_optax import is_due
        >>> [step for step in range(1, 10) if is_due(step, 4)]
        [4, 8]
        >>> [step for step in range(1, 20) if is_due(step, 4, window=(4, 12))]
        [8, 12]
    """
    if not isinstance(step, jax.Array) and step < 1:
        raise ValueError(f"`step` counts from 1, got {step!r}: in a loop from 0 pass `step + 1`.")
    # For arrays not `%`, which compiles to more, for the sake of negative numbers.
    due = (
        jnp.fmod(step, evolve_every) if isinstance(step, jax.Array) else step % evolve_every
    ) == 0
    if window is not None:
        start, stop = window
        due &= step > start
        if stop is not None:
            due &= step <= stop
    return due if isinstance(due, jax.Array) else bool(due)
