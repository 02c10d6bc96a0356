"""What the demo says at the end: a table, and the numbers behind it as JSON."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import platform
from typing import Any

import flax
import jax
import numpy as np
import optax
from rich.box import SIMPLE
from rich.table import Table

from demo import landscape
from demo.method import Method
from demo.stories import Story
from demo.train import Run
import egd_optax

# Runs, one a seed, by the title of the story and the name of the method.
Results = Mapping[str, Mapping[str, Sequence[Run]]]
# Runs on the landscape, one a seed, by the name of the method.
Paths = Mapping[str, Sequence[landscape.Path]]


def table(results: Results) -> Table:
    """Means and standard deviations over the seeds, a row a method, story by story."""
    # Narrow enough for 80 columns.
    rows = Table(
        title="At equal compute, mean ± standard deviation over the seeds",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    rows.add_column("Method", no_wrap=True)
    for column in ("Test error %", "Test loss", "Forwards", "Cycles", "Accepted"):
        rows.add_column(column, justify="right", no_wrap=True)
    for title, methods in results.items():
        rows.add_row(title, style="bold")
        for name, runs in methods.items():
            rows.add_row(f" {name}", *_cells(runs))
        rows.add_section()
    return rows


def landscape_table(paths: Paths) -> Table:
    """The values at the end, a row a method."""
    rows = Table(
        title=f"{landscape.TITLE}: the last value",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    rows.add_column("Method", no_wrap=True)
    for column in ("Lowest seed", "Highest", f"Below {landscape.SOLVED}", "Forwards", "Cycles"):
        rows.add_column(column, justify="right", no_wrap=True)
    for name, runs in paths.items():
        last = [run.values[-1] for run in runs]
        solved = sum(value < landscape.SOLVED for value in last)
        rows.add_row(
            name,
            f"{min(last):.2g}",
            f"{max(last):.2g}",
            f"{solved} of {len(last)}",
            f"{runs[0].forwards[-1]:,}",
            f"{runs[0].cycles}",
        )
    return rows


def save(
    results: Results,
    stories: Sequence[Story],
    paths: Paths,
    descents: Mapping[str, landscape.Descent],
    path: Path,
) -> None:
    """Writes everything but the parameters, and what it takes to get it again."""
    content = {
        "versions": {
            **{package.__name__: package.__version__ for package in (egd_optax, flax, jax, optax)},
            "python": platform.python_version(),
        },
        "platform": f"{platform.platform()}, {jax.devices()[0].device_kind}",
        "stories": {
            story.title: {
                name: {"settings": _settings(method), "runs": _runs(results[story.title][name])}
                for name, method in story.methods.items()
            }
            for story in stories
        },
        "landscape": {
            name: {
                "settings": descents[name]._asdict(),
                "runs": [
                    {"seed": run.seed, "value": run.values[-1], "forwards": run.forwards[-1]}
                    for run in runs
                ],
            }
            for name, runs in paths.items()
        },
    }
    # Operators as one writes them.
    path.write_text(json.dumps(content, indent=1, default=repr) + "\n")


def _cells(runs: Sequence[Run]) -> tuple[str, ...]:
    errors = [100 * float(run.test.error) for run in runs]
    losses = [float(run.test.loss) for run in runs]
    accepted = [left_parent for run in runs for _, left_parent in run.cycles]
    return (
        _spread(errors, 1),
        _spread(losses, 2),
        f"{np.mean([run.forwards for run in runs]):,.0f}",
        f"{len(accepted) / len(runs):.0f}",
        f"{np.mean(accepted):.0%}" if accepted else "-",
    )


def _spread(values: Sequence[float], digits: int) -> str:
    # The sample standard deviation, which a single seed does not have.
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}"


def _settings(method: Method) -> dict[str, Any]:
    cycles = method.cycles and method.cycles._asdict()
    return {**method._asdict(), "cycles": cycles}


def _runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "seed": run.seed,
            "test_error": float(run.test.error),
            "test_loss": float(run.test.loss),
            "forwards": run.forwards,
            "forwards_at_best": run.best.forwards,
            "validation": [
                {
                    "forwards": at.forwards,
                    "error": float(at.validation.error),
                    "loss": float(at.validation.loss),
                }
                for at in run.checkpoints
            ],
            "cycles": [
                {"forwards": forwards, "accepted": accepted} for forwards, accepted in run.cycles
            ],
        }
        for run in runs
    ]
