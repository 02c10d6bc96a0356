"""Values of COCO to compare ours with: `python -m benchmarks.bbob.reference` writes them.

It needs `coco-experiment`, which nothing else here does.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bbob import draws
from benchmarks.bbob.functions import FUNCTIONS
from benchmarks.bbob.instance import seed_of

PATH = Path(__file__).parent / "reference.json"
DIMENSION, INSTANCES, POINTS = 20, (1, 2, 5, 101), 3


def points(function: int, number: int) -> np.ndarray:
    """Where the values are taken, `[POINTS, DIMENSION]`: the last point leaves the box."""
    rng = np.random.default_rng([function, number])
    return rng.uniform(-5, 5, [POINTS, DIMENSION]) * np.array([[1.0], [1.0], [1.4]])


def values() -> dict[str, list[float]]:
    """COCO's values above its optimum, by function and instance."""
    import cocoex

    found = {}
    for function in FUNCTIONS:
        for number in INSTANCES:
            problem = cocoex.BareProblem("bbob", function, DIMENSION, number)
            f_opt = draws.offset(seed_of(function, number))
            found[f"{function}, {number}"] = [
                problem(point) - f_opt for point in points(function, number)
            ]
    return found


def load() -> dict[str, Any]:
    """Reads what `main` wrote."""
    record: dict[str, Any] = json.loads(PATH.read_text())
    return record


def main() -> None:
    """Writes the values, and the version of COCO that they are of."""
    version = importlib.metadata.version("coco-experiment")
    record = {"coco-experiment": version, "dimension": DIMENSION, "values": values()}
    PATH.write_text(json.dumps(record, indent=0) + "\n")


if __name__ == "__main__":
    main()
