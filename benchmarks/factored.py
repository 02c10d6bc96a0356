"""Members of low-rank noise that are never formed, over as many forward passes and nothing else.

A row is a whole cycle: draws, evaluations of all members, of parent and child, and their sum.
Beside it stand cycles that form their members, EGGROLL's arithmetic written by hand, and a
generation of evosax, which holds all members. On a CPU it is to run under
`python -m xla_options plain_products`: fusions of small products, which are slow where there are
few rows, would favour whatever has more.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

from benchmarks import cycle, eggroll, measure, models, noise, side_by_side
from egd_optax import Execution, accept
from egd_optax import noise as noises


class Case(NamedTuple):
    """A network, what a member is evaluated on, and how many there are.

    Attributes:
        model: name of the network.
        make: makes it.
        on: what a member is evaluated on, in words.
        population: members.
        by_hand: the network with factors, written by hand, if it is.
    """

    model: str
    make: Callable[[], models.Problem]
    on: str
    population: int
    by_hand: eggroll.Loss | None = None


def networks() -> Iterator[Case]:
    """What is measured, small first."""
    partial = functools.partial

    def perceptron(label: str, samples: int, population: int = 64) -> Case:
        make = partial(models.perceptron, models.SIZES[label], samples)
        on = f"{samples} samples"
        return Case(f"perceptron {label}", make, on, population, eggroll.perceptron)

    def transformer(label: str, tokens: int, blocks: int = 4, population: int = 64) -> Case:
        make = partial(models.transformer, models.SIZES[label], 8, tokens, blocks)
        name = f"transformer {label}" if blocks > 1 else f"one layer {label}"
        return Case(name, make, f"8 x {tokens} tokens", population, eggroll.transformer)

    for population in (64, 512):
        for samples in (8, 32, 512):
            yield perceptron("1M", samples, population)
    yield perceptron("10M", 8)
    yield perceptron("10M", 32)
    yield Case("recurrent 1M", partial(models.recurrent, 10**6, 8), "8 x 16 steps", 64)
    yield transformer("1M", 8)
    yield transformer("1M", 32)
    yield transformer("1M", 8, blocks=1)
    yield transformer("10M", 8)
    yield Case("convolutions 1M", partial(models.convolutions, 10**6, 8), "8 images", 64)
    yield Case("decoding 1M", partial(models.decoding, 10**6, 4), "4 x 64 tokens", 64)
    for population in (64, 512):
        yield Case("policy 64 x 64", partial(models.policy, 64**2, 1), "200 steps", population)


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    rounds = 3 if quick else 11
    for case in list(networks())[: 1 if quick else None]:
        yield f"{case.model}, {case.on}", functools.partial(measure_case, case, rounds)


def measure_case(
    case: Case, rounds: int, chunks: Sequence[int] = (), place: Callable[[Any], Any] = lambda p: p
) -> list[dict[str, Any]]:
    """A row for each way to evaluate the members.

    Args:
        case: what to measure.
        rounds: of each way.
        chunks: members at a time of more ways, factored.
        place: puts the problem on its device.
    """
    problem = place(case.make())
    ways = {
        "formed": Execution(evaluate="formed"),
        "formed, all at once": Execution(evaluate="formed", candidate_batch_size=case.population),
        "factored": Execution(evaluate="factored"),
        "auto": Execution(evaluate="auto"),
    }
    ways |= {
        f"factored, {chunk} at once": Execution(evaluate="factored", candidate_batch_size=chunk)
        for chunk in chunks
    }
    parameters = 4 * models.size(problem.params)
    runs: dict[str, Any] = {"forwards": noise.forwards(problem, case.population + 2)}
    memory: dict[str, float] = {}
    for way, execution in ways.items():
        program = cycle.program(
            problem,
            population_size=case.population,
            antithetic=True,
            accept=accept.always(),
            noise=noises.low_rank(),
            execution=execution,
        )
        memory[way] = program[0].memory_analysis().temp_size_in_bytes / parameters
        runs[way] = functools.partial(*program)
    if case.by_hand is not None:
        rows = max(1, 2048 // rows_of(problem))
        chunk = max(size for size in (2, 4, 8, 16, 32, 64) if size <= max(2, rows))
        runs["by hand"] = eggroll.generation(problem, case.by_hand, case.population, chunk)
    if case.by_hand is not None and parameters * case.population < 2**29:
        evosax = side_by_side.open_es(case.population, problem.loss)
        if evosax is not None:
            runs["evosax"] = side_by_side.generations(evosax, place(case.make()))
    timings = measure.compare(runs, "forwards", rounds)
    about = {"model": case.model, "on": case.on, "population": case.population}
    return [
        {**about, "way": way, "temp_over_params": memory.get(way), **timing}
        for way, timing in timings.items()
    ]


def rows_of(problem: models.Problem) -> int:
    """How many rows of data there are."""
    inputs, _ = problem.batch
    rows: int = inputs.size // inputs.shape[-1]
    return rows
