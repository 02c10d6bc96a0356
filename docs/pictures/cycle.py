"""Draws the six frames of the quickstart, on white and on black."""

from pathlib import Path

import jupytext
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
LAST = "6  SGD resumes"
BACKGROUNDS = {"light": "#ffffff", "dark": "#14181e"}


def draw() -> None:
    """Runs the notebook as far as its six frames, and saves these."""
    plt.show = lambda: None
    style = plt.style.use
    plt.style.use = lambda name: style(NOTEBOOKS / name)
    names: dict[str, object] = {"print": lambda *_: None}
    for cell in jupytext.read(NOTEBOOKS / "01_quickstart.py").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if LAST in cell.source:
            break
    for name, background in BACKGROUNDS.items():
        plt.savefig(HERE / f"cycle_{name}.png", facecolor=background, dpi=80)


if __name__ == "__main__":
    draw()
