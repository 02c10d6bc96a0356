"""What is said about scores; lower is better, and seeds pair the runs of two methods."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Summary(NamedTuple):
    """Scores of a method over seeds.

    Attributes:
        solved: share of scores up to what counts as solved, or None where nothing does.
    """

    median: float
    mean: float
    deviation: float
    solved: float | None


class Comparison(NamedTuple):
    """A method against a reference, seed by seed.

    Attributes:
        better: seeds on which its score is lower.
        same: seeds on which both are equal.
        worse: the others.
        difference: median of its score less that of the reference.
        low: of a bootstrapped interval that covers the median difference with 95 %.
        high: likewise.
    """

    better: int
    same: int
    worse: int
    difference: float
    low: float
    high: float


def summarize(scores: Sequence[float], success: float | None) -> Summary:
    """Summarises scores; two at least."""
    values = np.asarray(scores)
    # A deviation from an infinite mean is not a number, and shown as such.
    with np.errstate(invalid="ignore"):
        deviation = float(np.std(values, ddof=1))
    solved = None if success is None else float(np.mean(values <= success))
    return Summary(float(np.median(values)), float(np.mean(values)), deviation, solved)


def compare(scores: Sequence[float], reference: Sequence[float]) -> Comparison:
    """Compares scores with those of the reference on the same seeds."""
    ours, theirs = np.asarray(scores), np.asarray(reference)
    # Two runs that diverged are the same, though infinity less infinity is not a number.
    with np.errstate(invalid="ignore"):
        difference = np.where(ours == theirs, 0.0, ours - theirs)
        low = high = median = float(np.median(difference))
        if np.unique(difference).size > 1:
            low, high = stats.bootstrap(
                (difference,), np.median, method="percentile", rng=np.random.default_rng(0)
            ).confidence_interval
    return Comparison(
        better=int(np.sum(ours < theirs)),
        same=int(np.sum(ours == theirs)),
        worse=int(np.sum(ours > theirs)),
        difference=median,
        low=float(low),
        high=float(high),
    )
