"""What a method is given to solve."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
Batch = Any
Objective = Callable[[Params, Batch], jax.Array]


class Problem(NamedTuple):
    """A model, its data, and the measure that is published.

    Every function maps parameters and a batch (a pytree of arrays, samples first) to a
    float32 scalar, lower is better, and is cheap to trace.

    Attributes:
        name: a short identifier, also the name of its result files.
        kind: "metric" (what is deployed has no useful gradient), "global" (a multimodal
            function), "noise" (a training set that misleads) or "control" (a problem on
            which no gain is expected).
        init: draws parameters from a key.
        loss: what plain gradient descent minimises.
        fitness: what is deployed, evaluated forward only; the loss itself where nothing
            better is known.
        straight_through: a differentiable stand-in for `fitness`, or None.
        score: the published measure of deployed parameters.
        train, validation, test: pytrees of arrays, samples first. Tuning is judged on
            `validation`, what is published on `test`. For a function that is to be
            minimised, one dummy sample.
        batch_size: samples of a gradient step.
        budget: sample-forwards that a run may spend; a gradient step costs 3 a sample,
            a candidate 1 a sample.
        success: a score that counts as solved, or None.
        threshold: maps parameters and a batch to parameters whose decision threshold is
            tuned on that batch, or None where there is none to tune.
        read_out: the stand-in for a device that shows more of itself than the problem lets
            methods see, or None. Only baselines that say so descend on it.
    """

    name: str
    kind: str
    init: Callable[[jax.Array], Params]
    loss: Objective
    fitness: Objective
    straight_through: Objective | None
    score: Objective
    train: Batch
    validation: Batch
    test: Batch
    batch_size: int
    budget: int
    success: float | None = None
    threshold: Callable[[Params, Batch], Params] | None = None
    read_out: Objective | None = None
