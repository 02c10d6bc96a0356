"""Chooses the settings in `demo.stories`; run with `python -m demo.tune`.

Every method gets a grid of 36 settings, on seeds that the demo does not show, and is
judged as in the demo: by the best checkpoint on the validation images, after rounding
where the story rounds. The lowest mean validation error wins, ties to the lower loss.
"""

from collections.abc import Sequence
import itertools

import jax
import numpy as np

from demo import digits
from demo.method import Method
from demo.stories import BUDGET, CHECKS, STORIES, Story, egd
from demo.train import run

SEEDS = (100, 101, 102)


def gradient_grid(*, straight_through: bool) -> list[Method]:
    """Settings without cycles."""
    rates, decays, sizes = (0.01, 0.03, 0.1), (0.0, 1e-3, 1e-2, 3e-2), (8, 32, 128)
    return [
        Method(rate, decay, size, straight_through=straight_through)
        for rate, decay, size in itertools.product(rates, decays, sizes)
    ]


def egd_grid() -> list[Method]:
    """Settings of EGD; learning rate, batch, population and fitness batch are fixed."""
    decays, every, sigmas, rules = (0.0, 1e-3), (10, 30, 100), (0.02, 0.05, 0.1), ("always", "best")
    return list(itertools.starmap(egd, itertools.product(decays, every, sigmas, rules)))


GRIDS = {
    "SGD": gradient_grid(straight_through=False),
    "SGD, straight-through": gradient_grid(straight_through=True),
    "EGD": egd_grid(),
}


def validation(method: Method, story: Story, data: digits.Digits) -> tuple[float, float]:
    """Mean validation error and loss of the best checkpoints over the seeds."""
    runs = [
        run(method, story.deploy, data, seed=seed, budget=BUDGET, checks=CHECKS) for seed in SEEDS
    ]
    # A setting is a program of its own; hundreds of them exhaust the memory mappings.
    jax.clear_caches()
    scores = [one.best.validation for one in runs]
    return float(np.mean([at.error for at in scores])), float(np.mean([at.loss for at in scores]))


def tune(story: Story, grid: Sequence[Method], data: digits.Digits) -> None:
    """Prints the grid, best setting first."""
    results = [(*validation(method, story, data), method) for method in grid]
    for error, loss, method in sorted(results, key=lambda result: result[:2]):
        print(f"  {error:7.2%} {loss:.3f}  {method}", flush=True)


def main() -> None:
    """Tunes every method of every story."""
    data = digits.load()
    for story in STORIES:
        for name in story.methods:
            print(f"{story.title}: {name}", flush=True)
            tune(story, GRIDS[name], data)


if __name__ == "__main__":
    main()
