"""One plot of all results that compare times."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter
from PIL import Image

from benchmarks import measure

INK = "#777777"  # readable on white and on black
COLORS = ("#1f88c9", "#d55e00", "#777777")


def draw() -> Path:
    """Draws ratios with their quartiles; returns the file."""
    with plt.rc_context({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
                         "xtick.color": INK, "ytick.color": INK}):  # fmt: skip
        figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
        _panel(
            axes[0], "idle_kept", "form", ("in graph", "evolve=False"), ("base", "size", "samples")
        )
        _panel(
            axes[1], "cycle_kept", "memory", ("host", "device", "replay"), ("size", "population")
        )
        _panel(
            axes[2], "noise_kept", "noise", ("full_rank", "low_rank"), ("model", "size", "samples")
        )
        axes[0].set_title("step without a cycle / base step")
        axes[1].set_title("cycle / its forwards and draws")
        axes[2].set_title("cycle, replayed / its forwards")
        path = measure.RESULTS / "summary.png"
        drawn = io.BytesIO()
        figure.savefig(drawn, transparent=True, dpi=70)
        # A few tones of few colours: as sharp, and a fraction of the size.
        Image.open(drawn).quantize(64).save(path, optimize=True)
        plt.close(figure)
    return path


def _panel(
    axes: plt.Axes, name: str, across: str, series: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    if not (measure.RESULTS / f"{name}.json").exists():
        return
    rows = [row for row in measure.load(name)["rows"] if across in row]
    if name == "noise_kept":
        rows = [row for row in rows if row["memory"] == "replay"]
    labels = list(dict.fromkeys(", ".join(str(row[key]) for key in keys) for row in rows))
    markers = ("o", "s", "^")
    for at, (value, color, marker) in enumerate(zip(series, COLORS, markers, strict=False)):
        found = [row for row in rows if row[across] == value]
        places = [labels.index(", ".join(str(row[key]) for key in keys)) for row in found]
        medians = [row["ratio"]["median"] for row in found]
        below = [row["ratio"]["median"] - row["ratio"]["low"] for row in found]
        above = [row["ratio"]["high"] - row["ratio"]["median"] for row in found]
        shifted = [place + 0.2 * (at - 1) for place in places]
        axes.errorbar(medians, shifted, xerr=[below, above], fmt=marker, color=color, label=value)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set(xscale="log", yticks=range(len(labels)), yticklabels=labels, xlabel="ratio")
    axes.set_ylabel(", ".join(keys))
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, labelcolor=INK)
