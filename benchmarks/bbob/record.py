"""Tunes and runs the methods, and writes what they found."""

from collections.abc import Iterable
import json
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.bbob.functions import FUNCTIONS
from benchmarks.bbob.method import DIMENSION, Numbers, minimise
from benchmarks.bbob.methods import METHODS, SETTINGS_OF
from benchmarks.bbob.seen import READ_AT, TARGETS, hit

# COCO's first instances are for the results, others for tuning.
INSTANCES, TUNING = (1, 2, 3, 4, 5), (101, 102, 103, 104, 105)
SEEDS = 3
QUARTILES = (0.25, 0.5, 0.75)


def tune(functions: Iterable[int] = tuple(FUNCTIONS)) -> None:
    """Writes the share of the targets for all settings of all methods, on other instances."""
    hits: dict[tuple[str, str, int], list[float]] = {}
    for function in functions:
        for name, method in METHODS.items():
            if name in SETTINGS_OF or len(method.runs) * len(method.grid) == 1:
                continue
            for kind, run in method.runs.items():
                best = minimise(run, function, TUNING, 1, method.grid)[..., -1]
                for at, count in enumerate(hit(best).mean((1, 2))):
                    hits.setdefault((name, kind, at), []).append(float(count))
        jax.clear_caches()
        print(f"tuned on function {function}", flush=True)
    rows = [
        {
            "method": name,
            "kind": kind,
            "numbers": METHODS[name].grid[at],
            "share": round(float(np.mean(found)) / TARGETS.size, 4),
        }
        for (name, kind, at), found in hits.items()
    ]
    save("bbob_tuning", rows, instances=TUNING, seeds=1, command="python -m benchmarks.bbob tune")


def chosen(name: str) -> tuple[str, Numbers]:
    """The settings of a method that hit the largest share on the instances for tuning."""
    tuned = SETTINGS_OF.get(name, name)
    rows = [row for row in measure.load("bbob_tuning")["rows"] if row["method"] == tuned]
    if not rows:
        (kind,) = METHODS[name].runs
        return kind, METHODS[name].grid[0]
    best = max(rows, key=lambda row: row["share"])
    return best["kind"], best["numbers"]


def run(functions: Iterable[int] = tuple(FUNCTIONS)) -> None:
    """Writes what the methods found with the chosen settings, after every function."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    done = []
    for function in functions:
        for name, method in METHODS.items():
            kind, numbers = chosen(name)
            best = minimise(method.runs[kind], function, INSTANCES, SEEDS, [numbers])[0]
            found[name].append(summary(best))
            print(function, name, found[name][-1], flush=True)
        jax.clear_caches()
        done.append(function)
        save(
            "bbob",
            [rows_of(name, one) for name, one in found.items()],
            functions=done,
            dimension=DIMENSION,
            instances=INSTANCES,
            seeds=SEEDS,
            read_at=READ_AT,
            command="python -m benchmarks.bbob run",
        )


def rows_of(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A method, its settings, and its summaries of all functions as lists."""
    kind, numbers = chosen(name)
    lists = {what: [one[what] for one in found] for what in found[0]}
    return {"method": name, "kind": kind, "numbers": numbers, **lists}


def summary(best: np.ndarray) -> dict[str, Any]:
    """What a method found on a function, from `[instances, seeds, len(READ_AT)]`.

    Returns:
        `hits`, the targets that all runs hit together, at each reading; `by_instance`, those of
        each instance at the end; `by_run`, the quartiles over the runs at the end; `values`, the
        quartiles of the best values.
    """
    hits = hit(best)
    ends = hits[..., -1]
    return {
        "hits": hits.sum((0, 1)).tolist(),
        "by_instance": ends.sum(1).tolist(),
        "by_run": [float(f"{one:g}") for one in np.quantile(ends, QUARTILES)],
        "values": [float(f"{one:.1e}") for one in np.quantile(best[..., -1], QUARTILES)],
    }


def save(name: str, rows: list[dict[str, Any]], **about: Any) -> None:
    """Writes a result as `measure.save` does, in few characters: a row is a line."""
    record = {"name": name, **measure.about_this_run("evosax"), **about}
    head = json.dumps(record)[:-1]
    body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (measure.RESULTS / f"{name}.json").write_text(f'{head}, "rows": [\n{body}\n]}}\n')
