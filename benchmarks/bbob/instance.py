"""What distinguishes the instances of a function: where its optimum is, and how it is turned."""

from typing import Any

import numpy as np

from benchmarks.bbob import draws
from benchmarks.bbob.peaks import peaks

# Two functions share the numbers of another one.
SHARED = {4: 3, 18: 17}
FAR = 1_000_000
# Where Schwefel's function has its optimum, and the two spheres of Lunacek's.
SCHWEFEL, LUNACEK = 4.2096874637, 2.5

Instance = dict[str, Any]


def instance(function: int, number: int, dimension: int) -> Instance:
    """The arrays of an instance.

    Args:
        function: 1 to 24.
        number: from 1; COCO publishes results of 1 to 15.
        dimension: at least 2.

    Returns:
        `x_opt` `[dimension]`, where the value is 0; `r` and `q`, rotations `[dimension,
        dimension]`. Those with Gaussian peaks have also what `peaks` returns.
    """
    seed = seed_of(function, number)
    made: Instance = {
        "x_opt": x_opt(function, dimension, seed),
        "r": draws.rotation(dimension, seed + FAR),
        "q": draws.rotation(dimension, seed),
    }
    if function in (9, 19):
        # The optimum is where all entries behind the rotation are 1.
        scale = max(1.0, dimension**0.5 / 8)
        made["x_opt"] = made["q"].T @ np.full(dimension, 0.5 / scale)
    if function in (21, 22):
        made |= peaks(101 if function == 21 else 21, made["q"], seed)
        made["x_opt"] = made["q"].T @ made["centres"][0]
    return made


def seed_of(function: int, number: int) -> int:
    """The seed of all numbers of an instance."""
    return SHARED.get(function, function) + 10_000 * number


def x_opt(function: int, dimension: int, seed: int) -> np.ndarray:
    """Where the optimum is, for functions that place it freely."""
    point = draws.optimum(dimension, seed + FAR if function == 12 else seed)
    match function:
        case 4:
            # The entries that are stretched on one side have their optimum on that side.
            point[::2] = np.abs(point[::2])
        case 5:
            point = np.where(point < 0, -5.0, 5.0)
        case 8:
            point = 0.75 * point
        case 20:
            signs = np.where(draws.uniform(dimension, seed) < 0.5, -1.0, 1.0)
            point = SCHWEFEL / 2 * signs
        case 24:
            signs = np.where(draws.normal(dimension, seed) < 0, -1.0, 1.0)
            point = LUNACEK / 2 * signs
    return point
