"""Timings side by side in one process, and what a result must say about itself.

Machines are noisy and differ, so only ratios are published. The programs that are compared
take turns, in a new order every round, and each round gives one ratio: what slows the
machine down for longer than a round slows all of them.

On a CPU the C library hands large temporary buffers back to the system after each program,
and each page of the next ones is a fault: a cost of memory that a program allocates, not of
what it does. The runtimes of accelerators keep their memory. `keep_freed_memory` has the C
library do so too.
"""

from collections.abc import Callable, Mapping
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import platform
import random
import statistics
import time
from typing import Any

import jax

import egd_optax

RESULTS = Path(__file__).parent / "results"
Run = Callable[[], Any]


def compare(runs: Mapping[str, Run], reference: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Times every run once a round, beside the others.

    Args:
        runs: functions without arguments that return the arrays to wait for; already
            compiled, or they are called once before the first round.
        reference: the name of the run that the others are divided by.
        rounds: at least 3.

    Returns:
        For every run: `seconds` (wall) and `cpu_seconds` of the process, and `ratio` and
        `cpu_ratio` over the reference, each with median and quartiles over the rounds.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    order, draw = list(runs), random.Random(0)
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            start, cpu_start = time.perf_counter(), time.process_time()
            jax.block_until_ready(runs[name]())
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    return {
        name: {
            "seconds": spread(wall[name]),
            "cpu_seconds": spread(cpu[name]),
            "ratio": spread(_ratios(wall[name], wall[reference])),
            "cpu_ratio": spread(_ratios(cpu[name], cpu[reference])),
        }
        for name in runs
    }


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the rest of this process; to be called before arrays are.

    As the environment variables MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 and a large
    MALLOC_TRIM_THRESHOLD_ do.

    Raises:
        OSError: the C library is another one, or refuses.
    """
    if platform.libc_ver()[0] != "glibc":
        raise OSError("the C library is not glibc: freed memory cannot be kept")
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    if not all((mallopt(arena_max, 1), mallopt(mmap_max, 0), mallopt(trim_threshold, -1))):
        raise OSError("glibc does not keep freed memory")


def spread(values: list[float]) -> dict[str, float]:
    """The median and the quartiles of some values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "count": len(values)}


def loop(step: Callable[..., Any], state: Any, steps: int) -> Run:
    """A run of `steps` steps that goes on where the last run ended.

    Args:
        step: maps the state to the next; may donate it.
        state: pytree of arrays to start from; copied.
        steps: how many.
    """
    holder = [jax.tree.map(lambda leaf: leaf.copy(), state)]

    def run() -> Any:
        for _ in range(steps):
            holder[0] = step(holder[0])
        return holder[0]

    return run


def save(name: str, rows: list[dict[str, Any]], **about: Any) -> Path:
    """Writes rows with the versions, the device and the date that they belong to."""
    RESULTS.mkdir(exist_ok=True)
    record = {"name": name, **about_this_run(), **about, "rows": rows}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def about_this_run(*packages: str) -> dict[str, Any]:
    """The date, the versions (of other packages too, where they are installed), and the device."""
    device = jax.local_devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax")}
    for name in packages:
        if importlib.util.find_spec(name):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {**versions, "egd_optax": egd_optax.__version__},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
            "machine": platform.machine(),
            "cores": _cores(),
        },
    }


def load(name: str) -> dict[str, Any]:
    """Reads what `save` wrote."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def _ratios(values: list[float], reference: list[float]) -> list[float]:
    return [value / base for value, base in zip(values, reference, strict=True)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
