"""Members of low-rank noise that are never formed, over as many forward passes and nothing else.

A row is a whole cycle: draws, evaluations of all members, of parent and child, and their sum.
"""

from collections.abc import Iterator
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import cycle, measure, models, noise
from egd_optax import Execution
from egd_optax import noise as noises


class Case(NamedTuple):
    """A network, and what it is evaluated on.

    Attributes:
        name: of the network.
        problem: makes it.
        rows: of it that a member is evaluated on, in words.
        population: members.
    """

    name: str
    problem: Any
    rows: str
    population: int


def networks() -> list[Case]:
    """What is measured, small first."""
    found = []
    for label, parameters in models.SIZES.items():
        for samples in (8, 32, 512) if label == "1M" else (8, 32):
            make = functools.partial(models.perceptron, parameters, samples)
            found.append(Case(f"perceptron {label}", make, f"{samples} samples", 64))
    found.append(Case("perceptron 1M", functools.partial(models.perceptron, 10**6, 8), "8 samples", 512))
    found.append(Case("recurrent 1M", functools.partial(models.recurrent, 10**6, 8), "8 x 16 steps", 64))
    for label, tokens in (("1M", 8), ("1M", 32), ("10M", 8)):
        make = functools.partial(models.transformer, models.SIZES[label], 8, tokens)
        found.append(Case(f"transformer {label}", make, f"8 x {tokens} tokens", 64))
    found.append(Case("convolutions 1M", functools.partial(models.convolutions, 10**6, 8), "8 images", 64))
    found.append(Case("decoding 1M", functools.partial(models.decoding, 10**6, 4), "4 x 64 tokens", 64))
    for population in (64, 512):
        make = functools.partial(models.policy, 64**2, 1)
        found.append(Case("policy 64 x 64", make, "200 steps", population))
    return found


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for case in networks()[: 1 if quick else None]:
        yield f"{case.name}, {case.rows}", functools.partial(measure_case, case, quick)


def measure_case(case: Case, quick: bool) -> list[dict[str, Any]]:
    """A row for each way to evaluate the members."""
    problem = case.problem()
    ways = {
        "formed": Execution(),
        "formed, batches": Execution(candidate_batch_size=case.population),
        "factored": Execution(evaluate="factored"),
        "auto": Execution(evaluate="auto"),
    }
    extra = os.environ.get("CHUNKS", "")
    for chunk in filter(None, extra.split(",")):
        ways[f"factored {chunk}"] = Execution(evaluate="factored", candidate_batch_size=int(chunk))
    if os.environ.get("WAYS"):
        ways = {k: v for k, v in ways.items() if k in os.environ["WAYS"].split(";") or k[-1].isdigit()}
    programs = {
        way: cycle.program(
            problem,
            population_size=case.population,
            antithetic=True,
            accept="always",
            noise=noises.low_rank(),
            execution=execution,
        )
        for way, execution in ways.items()
    }
    runs = {"forwards": noise.forwards(problem, case.population + 2)}
    runs |= {way: functools.partial(*program) for way, program in programs.items()}
    timings = measure.compare(runs, "forwards", rounds=3 if quick else 9)
    parameters = 4 * models.size(problem.params)
    about = {"model": case.name, "rows": case.rows, "population": case.population}
    return [
        {
            **about,
            "way": way,
            "temp_over_params": programs[way][0].memory_analysis().temp_size_in_bytes / parameters,
            **timings[way],
        }
        for way in ways
    ]
