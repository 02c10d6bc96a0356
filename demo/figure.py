"""The figure: what was reached against what was spent, a column a story."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
import numpy as np

from demo import landscape
from demo.train import Run

# From the palette of Okabe and Ito, which colour-blind readers can tell apart.
STYLES = {
    "SGD": {"color": "#D55E00", "linestyle": "-"},
    "Adam": {"color": "#D55E00", "linestyle": "-"},
    "SGD + cycles": {"color": "#0072B2", "linestyle": "-"},
    "Adam + cycles": {"color": "#0072B2", "linestyle": "-"},
    "Straight-through": {"color": "#E69F00", "linestyle": "--"},
    "Straight-through + cycles": {"color": "#56B4E9", "linestyle": "--"},
    "Cycles alone": {"color": "#009E73", "linestyle": ":"},
}
OTHER_STYLE = {"color": "#009E73", "linestyle": "-"}
PERCENTS = (2, 3, 5, 10, 20, 50)


def draw(
    results: Mapping[str, Mapping[str, Sequence[Run]]],
    paths: Mapping[str, Sequence[landscape.Path]],
    path: Path,
) -> None:
    """Draws the runs, by story and method, and those on the landscape, and saves a PNG."""
    # Without pyplot, which would look for a display and keep the figure alive.
    figure = Figure(figsize=(5 * (len(results) + 1), 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    *panels, last = figure.subplots(1, len(results) + 1, squeeze=False)[0]
    for panel, (title, methods) in zip(panels, results.items(), strict=True):
        _draw_errors(panel, methods)
        panel.set_title(title, fontweight="bold")
        panel.sharey(panels[0])
    panels[0].set_ylabel("digits: validation error of the best checkpoint so far")
    _draw_values(last, paths)
    last.set_title(landscape.TITLE, fontweight="bold")
    for panel in (*panels, last):
        panel.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x / 1000:,.0f}k" if x else "0")
        )
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(framealpha=0.9, edgecolor="none", loc="upper right")
    seeds = max(len(runs) for methods in results.values() for runs in methods.values())
    figure.suptitle(
        "With and without cycles at equal compute, mean (of values: median) and range over "
        f"{seeds} seeds"
    )
    figure.savefig(path)


def best_so_far(run: Run) -> np.ndarray:
    """Validation error, in percent, of the best checkpoint until each check."""
    errors = [float(at.validation.error) for at in run.checkpoints]
    return 100 * np.minimum.accumulate(errors)


def _draw_errors(panel: Axes, methods: Mapping[str, Sequence[Run]]) -> None:
    for name, runs in methods.items():
        style = STYLES.get(name, OTHER_STYLE)
        forwards = [at.forwards for at in runs[0].checkpoints]
        errors = np.stack([best_so_far(run) for run in runs])
        panel.plot(forwards, errors.mean(axis=0), label=name, linewidth=2, **style)
        lowest, highest = errors.min(axis=0), errors.max(axis=0)
        panel.fill_between(forwards, lowest, highest, color=style["color"], alpha=0.18, lw=0)
    panel.set_yscale("log")
    panel.set_yticks(PERCENTS, [f"{percent}%" for percent in PERCENTS])
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("sample-forwards (a gradient on B images counts 3 B)")


def _draw_values(panel: Axes, paths: Mapping[str, Sequence[landscape.Path]]) -> None:
    for name, runs in paths.items():
        style = STYLES.get(name, OTHER_STYLE)
        values = np.stack([run.values for run in runs])
        forwards = runs[0].forwards
        panel.plot(forwards, np.median(values, axis=0), label=name, linewidth=2, **style)
        lowest, highest = values.min(axis=0), values.max(axis=0)
        panel.fill_between(forwards, lowest, highest, color=style["color"], alpha=0.18, lw=0)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.set_ylabel("value in 100 dimensions; the global minimum is 0")
    panel.set_xlabel("evaluations (a gradient counts 3)")
