"""Ten classes of short curves, made by the recipe of MNIST-1D.

The recipe: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D",
https://arxiv.org/abs/2011.14439. The templates are others, smooth random curves, so errors
do not compare with those of the paper.
"""

import numpy as np

from benchmarks.quality.problems.samples import Splits, split

SEED = 2021
HELD_OUT = 1_000
SIZE = 4_000 + 2 * HELD_OUT
CLASSES = 10
TEMPLATE_LENGTH = 12
# Zeros that are put after a template; a longer padding makes a narrower curve.
PADDING = (36, 60)
LENGTH = TEMPLATE_LENGTH + PADDING[1]
FINAL_LENGTH = 40
SCALE = 0.4
MAX_SHIFT = 48
SHEAR = 0.75
CORRELATED_NOISE = 0.25
CORRELATION_LENGTH = 2.0
NOISE = 0.02


def load() -> Splits:
    """Makes 4,000 curves to train on, and 1,000 and 1,000 held out."""
    rng = np.random.default_rng(SEED)
    shapes = templates(rng)
    labels = rng.integers(CLASSES, size=SIZE)
    curves = np.stack([curve(shapes[label], rng) for label in labels])
    centre, spread = curves[2 * HELD_OUT :].mean(), curves[2 * HELD_OUT :].std()
    return split((curves - centre) / spread, labels, HELD_OUT)


def templates(rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve for each class, `[10, 12]`, that starts at 0."""
    walks = np.cumsum(rng.normal(size=[CLASSES, TEMPLATE_LENGTH]), axis=1)
    smoothed = np.stack([smooth(walk, 1.0) for walk in walks])
    scaled = smoothed / smoothed.std(axis=1, keepdims=True)
    return np.asarray(scaled - scaled[:, :1])


def curve(template: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pads, scales, shifts and shears a template, adds noise, and samples it, `[40]`."""
    padding = rng.integers(PADDING[0], PADDING[1] + 1)
    points = resample(np.concatenate([template, np.zeros(padding)]), LENGTH)
    points = points * (1 + SCALE * rng.uniform(-0.5, 0.5))
    points = np.roll(points, rng.integers(MAX_SHIFT))
    points = points - SHEAR * rng.uniform(-0.5, 0.5) * np.linspace(-0.5, 0.5, LENGTH)
    points = points + smooth(CORRELATED_NOISE * rng.normal(size=LENGTH), CORRELATION_LENGTH)
    return resample(points + NOISE * rng.normal(size=LENGTH), FINAL_LENGTH)


def resample(points: np.ndarray, length: int) -> np.ndarray:
    """Interpolates a curve linearly at that many points."""
    places = np.linspace(0, len(points) - 1, length)
    return np.asarray(np.interp(places, np.arange(len(points)), points))


def smooth(points: np.ndarray, width: float) -> np.ndarray:
    """Convolves a curve with a Gaussian of that standard deviation."""
    reach = np.arange(-4 * int(width), 4 * int(width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    padded = np.pad(points, len(reach) // 2, mode="reflect")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
