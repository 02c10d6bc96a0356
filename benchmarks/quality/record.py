"""What was measured, a file for every method on every problem, so that runs can go on."""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import about_this_run

Record = dict[str, Any]


class Store:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        """Creates nothing yet."""
        self.folder = folder

    def load(self, problem: str, name: str) -> Record:
        """A record, empty if there is none."""
        path = self._path(problem, name)
        if not path.exists():
            return {}
        record: Record = json.loads(path.read_text())
        return record

    def save(self, problem: str, name: str, record: Mapping[str, Any]) -> None:
        """Writes a record with what it belongs to; a reader never sees half of it."""
        path = self._path(problem, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        whole = {**about_this_run("evosax", "gymnax"), **record}
        draft.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
        os.replace(draft, path)

    def _path(self, problem: str, name: str) -> Path:
        return self.folder / problem / f"{name}.json"


def written(score: float) -> float | None:
    """A score as JSON has it: in the digits that a float32 has; no number for one not finite."""
    return float(str(np.float32(score))) if math.isfinite(score) else None


def short(value: Any) -> Any:
    """A float in four digits, for what is only looked at; anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read(score: float | None) -> float:
    """A score as it is compared: one that is not finite is the worst."""
    return math.inf if score is None else score
