"""One seed of a method on a problem, beside the score that the archive has of it."""

from typing import NamedTuple

import jax

from benchmarks.quality import archive
from benchmarks.quality.methods import LEARNING, METHODS, SHARES, presets
from benchmarks.quality.methods.method import Trainer
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.record import read
from benchmarks.quality.runner import FIRST_SEED
from xla_options import known

# Methods whose noise the library draws.
WITH_CYCLES = {method.name for method in presets.METHODS}
REPRODUCED = {**METHODS, **SHARES, **LEARNING}


class Reproduced(NamedTuple):
    """Two scores of one run.

    Attributes:
        score: of a run now.
        archived: of the run in the archive.
        versions: those of the run in the archive.
        draws_anew: whether the method has cycles, whose draws were renewed since.
    """

    score: float
    archived: float
    versions: dict[str, str]
    draws_anew: bool


def reproduce(problem_name: str, method_name: str, seed: int) -> Reproduced:
    """Runs one seed with the settings of the archive.

    Args:
        problem_name: a name of `PROBLEMS`.
        method_name: a name of `METHODS`, `SHARES` or `LEARNING`.
        seed: one that the archive has, from 2000 on.

    Raises:
        ValueError: the archive has no such run.
    """
    for what, name, known_names in (
        ("problem", problem_name, PROBLEMS),
        ("method", method_name, REPRODUCED),
    ):
        if name not in known_names:
            raise ValueError(f"no {what} {name!r}: one of {', '.join(known_names)}.")
    record = archive.record(problem_name, method_name)
    scores = record["scores"]
    if not 0 <= seed - FIRST_SEED < len(scores):
        last = FIRST_SEED + len(scores) - 1
        raise ValueError(f"seed {seed} must be one of {FIRST_SEED} to {last}.")
    problem, method = PROBLEMS[problem_name](), REPRODUCED[method_name]
    trainer = Trainer(method, problem, record["budget"], known("brief"))
    params = trainer(record["settings"], seed)
    score = jax.jit(lambda params: problem.score(params, problem.test))
    return Reproduced(
        float(score(params)),
        read(scores[seed - FIRST_SEED]),
        record["versions"],
        method_name in WITH_CYCLES,
    )


def told(run: Reproduced) -> str:
    """The two scores, and whether they should agree."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    why = "Both should agree within rounding: the draws of this method are those of the archive."
    if run.draws_anew:
        why = (
            "They need not agree: the draws of cycles were renewed since, so this seed is another "
            "run. Compare medians over seeds."
        )
    return f"now         {run.score:.6g}\narchive     {run.archived:.6g}   ({versions})\n{why}"
