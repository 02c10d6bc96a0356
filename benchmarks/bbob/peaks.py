"""The peaks of Gallagher's functions."""

import numpy as np

from benchmarks.bbob import draws

CONDITION = 1000.0
HIGHEST, LOWEST, SECOND = 10.0, 1.1, 9.1


def peaks(count: int, turn: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Where the peaks are, how high, and how wide.

    Args:
        count: of peaks: 101 with a wide highest one, or 21 with a narrow one.
        turn: the rotation `[d, d]` into the axes of all peaks.
        seed: of the instance.

    Returns:
        `centres` `[count, d]` in these axes, `scales` `[count, d]` along them, `heights`
        `[count]`. The first peak is the highest.
    """
    dimension = len(turn)
    width, first = (5.0, CONDITION**0.5) if count == 101 else (4.9, CONDITION)
    order = np.argsort(draws.uniform(count - 1, seed), kind="stable")
    conditions = np.append(first, CONDITION ** (order / (count - 2)))
    heights = np.append(HIGHEST, np.linspace(LOWEST, SECOND, count - 1))
    scales = np.stack(
        [
            condition ** (_order(dimension, seed + 1000 * at) / (dimension - 1) - 0.5)
            for at, condition in enumerate(conditions)
        ]
    )
    places = draws.uniform(dimension * count, seed).reshape(count, dimension)
    # COCO draws twice 4.9 as 9.8, and twice 5 as 10.
    centres = (2 * width * places - width) @ turn.T
    centres[0] *= 0.8
    return {"centres": centres, "scales": scales, "heights": heights}


def _order(dimension: int, seed: int) -> np.ndarray:
    return np.argsort(draws.uniform(dimension, seed), kind="stable")
