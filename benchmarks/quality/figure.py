"""Pictures of the scores: the best methods of every problem, and three wins beside three losses."""

from collections.abc import Iterable, Mapping
import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator
import numpy as np
from PIL import Image

from benchmarks.figure import COLORS, INK
from benchmarks.quality import names, report
from benchmarks.quality.methods.presets import OURS
from benchmarks.quality.overview import Pair
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record

COLUMNS = 4
BEST = 5
INKS = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK}  # fmt: skip


def draw(found: Mapping[str, tuple[Problem, Mapping[str, Record]]], path: Path) -> Path:
    """Draws a panel a problem, with boxes of the best methods; returns the file."""
    lines = -(-len(found) // COLUMNS) or 1
    with plt.rc_context(INKS):
        figure, axes = plt.subplots(
            lines, COLUMNS, figsize=(18, 2.1 * lines), layout="constrained", squeeze=False
        )
        for at in axes.flat[len(found) :]:
            at.set_axis_off()
        for at, (problem, records) in zip(axes.flat, found.values(), strict=False):
            _panel(at, problem, records)
        figure.supxlabel("score of a seed, lower is better; blue: presets of this library")
        return _saved(figure, path)


def draw_pairs(found: Iterable[Pair], path: Path) -> Path:
    """Draws bars: the score with cycles over the score without."""
    with plt.rc_context(INKS):
        figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
        pairs = list(found)
        for at, one in enumerate(pairs):
            ratio = one.medians[1] / one.medians[0]
            won = report.outcome(one.paired) == "win"
            axes.barh(at, ratio, color=COLORS[0] if won else COLORS[1], height=0.6)
            text = f"{one.medians[0]:.3g} to {one.medians[1]:.3g}"
            axes.annotate(text, (ratio, at), (4, 0), textcoords="offset points", va="center")
        axes.axvline(1, color=INK, linewidth=1)
        axes.set(
            yticks=range(len(pairs)),
            yticklabels=[one.problem for one in pairs],
            xlim=(0, 1.75),
            xlabel="error with cycles over the error without; below 1, cycles win",
        )
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, transparent=True, dpi=75)
    # A few tones of three colours: as sharp, and a third of the size.
    Image.open(drawn).quantize(32).save(path, optimize=True)
    plt.close(figure)
    return path


def _panel(axes: Axes, problem: Problem, records: Mapping[str, Record]) -> None:
    best = report.ranked(records)[:BEST]
    ours = {method.name for method in OURS}
    jitter = np.random.default_rng(0)
    for at, name in enumerate(reversed(best)):
        scores = np.asarray(report.scores(records[name]))
        finite = scores[np.isfinite(scores)]
        line = {"color": COLORS[0] if name in ours else COLORS[2]}
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
        axes.plot(finite, spread, ".", **line, markersize=2, alpha=0.5, rasterized=True)
    labels = [names.method(name) for name in reversed(best)]
    axes.set(yticks=range(len(best)), yticklabels=labels)
    axes.set_title(names.problem(problem.name), fontsize=10)
    axes.tick_params(labelsize=8)
    lowest = min(min(report.scores(records[name])) for name in best)
    if problem.kind == "global" and lowest < 1e-3:
        axes.set_xscale("symlog", linthresh=1e-14)
        axes.xaxis.get_major_locator().set_params(numticks=4)
        axes.set_xlim(left=-1e-15)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
