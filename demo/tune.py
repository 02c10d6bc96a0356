"""Chooses the settings in `demo.stories`; run with `python -m demo.tune`.

Every method gets 12 settings, on seeds that the demo does not show, and is judged as in
the demo: by the best checkpoint on the validation images, after rounding where the story
rounds. The lowest mean validation error wins, ties to the lower loss. On the landscape it is the
lowest mean value at the end.
"""

import itertools

import jax
import numpy as np

from benchmarks.quality import digits
from demo import landscape
from demo.method import Method
from demo.stories import BUDGET, CHECKS, STORIES, Story
from demo.train import run

SEEDS = (100, 101, 102)

RATES = {"sgd": (0.01, 0.03, 0.1, 0.3), "adam": (1e-3, 3e-3, 1e-2, 3e-2)}
BATCH_SIZES = (8, 32, 128)
SIGMAS = (0.05, 0.1)
STEPS = (0.5, 1.0)


def grid(method: Method) -> list[Method]:
    """What is tried in place of a method's settings; of EGD not the smallest rate."""
    rates = RATES[method.base]
    if method.cycles is None:
        return [
            method._replace(learning_rate=rate, batch_size=size)
            for rate, size in itertools.product(rates, BATCH_SIZES)
        ]
    return [
        method._replace(
            learning_rate=rate,
            cycles=method.cycles._replace(sigma=sigma, es_rate=step),
        )
        for rate, sigma, step in itertools.product(rates[1:], SIGMAS, STEPS)
    ]


def validation(method: Method, story: Story, data: digits.Digits) -> tuple[float, float]:
    """Mean validation error and loss of the best checkpoints over the seeds."""
    runs = [
        run(method, story.deploy, data, seed=seed, budget=BUDGET, checks=CHECKS) for seed in SEEDS
    ]
    # A setting is a program of its own; hundreds of them exhaust the memory mappings.
    jax.clear_caches()
    scores = [one.best.validation for one in runs]
    return float(np.mean([at.error for at in scores])), float(np.mean([at.loss for at in scores]))


def tune(method: Method, story: Story, data: digits.Digits) -> None:
    """Prints the grid, best setting first."""
    results = [(*validation(setting, story, data), setting) for setting in grid(method)]
    for error, loss, setting in sorted(results, key=lambda result: result[:2]):
        print(f"  {error:7.2%} {loss:.3f}  {setting}", flush=True)


def tune_descent(method: landscape.Descent) -> None:
    """Prints the grid of a method of the landscape, best setting first."""
    results = []
    for setting in landscape.grid(method):
        runs = [landscape.run(setting, seed=seed, budget=landscape.BUDGET) for seed in SEEDS]
        results.append((float(np.mean([one.values[-1] for one in runs])), setting))
    for value, setting in sorted(results):
        print(f"  {value:12.3g}  {setting}", flush=True)


def main() -> None:
    """Tunes every method of every story."""
    data = digits.load()
    for story in STORIES:
        for name, method in story.methods.items():
            print(f"{story.title}: {name}", flush=True)
            tune(method, story, data)
    for name, descent in landscape.METHODS.items():
        print(f"{landscape.TITLE}: {name}", flush=True)
        tune_descent(descent)


if __name__ == "__main__":
    main()
