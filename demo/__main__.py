"""Runs three stories with all methods and seeds, and reports; `python -m demo`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quality import digits
from demo import figure, landscape, report
from demo.stories import BUDGET, CHECKS, SEEDS, STORIES, Story
from demo.train import run

OUTPUT = Path(__file__).parent / "output"

NOTES = (
    "The test images are shown to one checkpoint of a run, the one with the lowest "
    "validation error, whatever the method.",
    "Forwards are images through the network; a gradient counts three. Validation, the "
    "same for all methods, is not counted.",
    "Cycles are those of the safe preset around SGD, of the metric preset around Adam, and of "
    "the preset for global search on Levy's function.",
    "With ternary weights every score is that of the rounded network, whose loss has no "
    "gradient. Adam takes that of the loss before rounding, and cycles follow the loss after "
    "it. Straight-through differentiates as if there were no rounding, a trick that not every "
    "loss has.",
    "On Levy's function the gradient adds nothing to the cycles; CMA-ES, not shown, solves it too.",
    "Where cycles lose: four-bit weights and a ternary convolutional network with straight-through "
    "gradients, and wherever a gradient does the job; docs/results/quality.md has all of it.",
)


def main(
    *,
    output: Path = OUTPUT,
    stories: Sequence[Story] = STORIES,
    seeds: Sequence[int] = SEEDS,
    budget: int = BUDGET,
    checks: int = CHECKS,
    descents: Mapping[str, landscape.Descent] = landscape.METHODS,
    evaluations: int = landscape.BUDGET,
    console: Console | None = None,
) -> tuple[report.Results, report.Paths]:
    """Runs the demo.

    Args:
        output: folder for the figure and the numbers; made if missing.
        stories: what to compare.
        seeds: a run each for every method.
        budget: sample-forwards of a run.
        checks: validations of a run.
        descents: the methods on the landscape, by name.
        evaluations: of the function there, a gradient counts three.
        console: where to print; None for the standard output.

    Returns:
        The runs, by story and method, and those on the landscape, by method.
    """
    console = console or Console()
    results = train_all(stories, seeds, budget=budget, checks=checks, console=console)
    paths = {
        name: [landscape.run(method, seed=seed, budget=evaluations) for seed in seeds]
        for name, method in descents.items()
    }
    output.mkdir(parents=True, exist_ok=True)
    figure.draw(results, paths, output / "curves.png")
    report.save(results, stories, paths, descents, output / "results.json")
    console.print(report.table(results))
    console.print(report.landscape_table(paths))
    for note in NOTES:
        console.print(note, style="dim", highlight=False)
    for name in ("curves.png", "results.json"):
        console.print(f"{output / name}", soft_wrap=True, highlight=False)
    return results, paths


def train_all(
    stories: Sequence[Story], seeds: Sequence[int], *, budget: int, checks: int, console: Console
) -> report.Results:
    """Trains every method of every story from every seed, behind a progress bar."""
    data = digits.load()
    columns = (TextColumn("{task.description:38}"), BarColumn(), TimeElapsedColumn())
    results: dict[str, dict[str, list]] = {story.title: {} for story in stories}
    with Progress(*columns, console=console) as progress:
        for story in stories:
            for name, method in story.methods.items():
                task = progress.add_task(f"{story.title}: {name}", total=len(seeds) * checks)
                results[story.title][name] = [
                    run(
                        method,
                        story.deploy,
                        data,
                        seed=seed,
                        budget=budget,
                        checks=checks,
                        on_check=lambda task=task: progress.advance(task),
                    )
                    for seed in seeds
                ]
    return results


if __name__ == "__main__":
    main()
