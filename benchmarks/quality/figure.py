"""A panel a problem: the scores of every method over the seeds."""

from collections.abc import Mapping
import io
from pathlib import Path

from matplotlib.axes import Axes
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from benchmarks.figure import COLORS, INK
from benchmarks.quality import report
from benchmarks.quality.methods.presets import OURS
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record

COLUMNS = 3


def draw(found: Mapping[str, tuple[Problem, Mapping[str, Record]]], path: Path) -> Path:
    """Draws boxes with the single scores beside them; returns the file."""
    height = max((len(records) for _, records in found.values()), default=1)
    lines = -(-len(found) // COLUMNS) or 1
    with plt.rc_context({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
                         "xtick.color": INK, "ytick.color": INK}):  # fmt: skip
        figure, axes = plt.subplots(
            lines,
            COLUMNS,
            figsize=(5.5 * COLUMNS, (1 + 0.25 * height) * lines),
            layout="constrained",
            squeeze=False,
        )
        for at in axes.flat[len(found) :]:
            at.set_axis_off()
        for at, (problem, records) in zip(axes.flat, found.values(), strict=False):
            _panel(at, problem, records)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = io.BytesIO()
        figure.savefig(drawn, transparent=True, dpi=75)
        # A few tones of three colours: as sharp, and a third of the size.
        Image.open(drawn).quantize(32).save(path, optimize=True)
        plt.close(figure)
    return path


def _panel(axes: Axes, problem: Problem, records: Mapping[str, Record]) -> None:
    values = {name: np.asarray(report.scores(record)) for name, record in records.items()}
    ranked = sorted(values, key=lambda name: float(np.median(values[name])), reverse=True)
    ours = {method.name for method in OURS}
    jitter = np.random.default_rng(0)
    for at, name in enumerate(ranked):
        color = COLORS[1] if name in ours else COLORS[0]
        finite = values[name][np.isfinite(values[name])]
        line = {"color": color}
        axes.boxplot(
            finite,
            positions=[at],
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops=line,
        )
        spread = at + jitter.uniform(-0.2, 0.2, finite.size)
        # Pixels: thousands of dots would make a large file.
        axes.plot(finite, spread, ".", color=color, markersize=2, alpha=0.5, rasterized=True)
    axes.set(yticks=range(len(ranked)), yticklabels=ranked, xlabel="score", title=problem.name)
    if problem.kind == "global":
        axes.set_xscale("symlog", linthresh=1e-3)
        # A tick at every power of ten on both sides of zero would print the labels over each other.
        axes.xaxis.get_major_locator().set_params(numticks=6)
        axes.set_xlim(left=-1e-3)
