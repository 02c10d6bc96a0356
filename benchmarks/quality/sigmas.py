"""What makes sigma smaller in global search, and where the search then ends."""

import numpy as np

from benchmarks.cells import Rows
from benchmarks.quality import report
from benchmarks.quality.record import Store

WAYS = {
    "a schedule, to a hundredth": "global_then_base",
    "`sigma.path_length`": "global_adaptive",
    "`noise.separable`": "global_separable_then_base",
    "`sigma.one_fifth`": "global_one_fifth_then_base",
}
PROBLEMS = {"Levy": "levy_100", "Ackley": "ackley_100", "Rastrigin": "rastrigin_100"}
HEADER = ["sigma", *PROBLEMS]
# A score below it lies in the lowest valley: all other minima of these functions are higher.
FOUND = 0.01


def rows(store: Store) -> Rows:
    """A row a way: medians, and how many seeds found the lowest valley.

    Bold is what most seeds found it with, and of these what ends lowest.
    """
    columns = [_column(problem, store) for problem in PROBLEMS.values()]
    return [list(row) for row in zip(WAYS, *columns, strict=True)]


def _column(problem: str, store: Store) -> list[str]:
    scores = [report.scores(store.load(problem, method)) for method in WAYS.values()]
    ends = [(-int(np.sum(np.array(one) < FOUND)), float(np.median(one))) for one in scores]
    cells = [f"{median:.2g}; {-found}" for found, median in ends]
    return [
        f"**{cell}**" if end == min(ends) else cell for cell, end in zip(cells, ends, strict=True)
    ]
