"""What only an accelerator can tell, in one run: `python -m benchmarks.gpu`.

link: how fast arrays move between the device and pinned host memory.
peak: the most device memory that a cycle ever had in use, each in a process of its own,
  because that number never falls within a process.
factored: members of low-rank noise that are never formed, see `benchmarks.factored`, with so many
  at once, over as many forward passes.
idle: a step without a cycle over the same step of the base optimizer alone.
cycle: a cycle over as many forward passes and nothing else.

Rows are saved as they come. What does not fit the time or the memory is a row that says so.
On a CPU it runs with small sizes, to be tested, and saves to another file.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import eggroll, factored, idle, measure, models, noise, side_by_side

MEMORY = ("host", "device", "replay")
POPULATIONS = (16, 4, 64)  # the first is measured at every size before the others
ROUNDS = 9
Rows = list[dict[str, Any]]


class Plan(NamedTuple):
    """How much to measure.

    Attributes:
        sizes: numbers of parameters of the models.
        samples: of a batch.
        peak_size: parameters of the model whose memory is measured.
        peak_populations: members of the cycles whose memory is measured.
        link_bytes: size of the array that is moved.
        factored: networks, and numbers of members at once.
        budget: seconds for everything.
    """

    sizes: tuple[int, ...]
    samples: int
    peak_size: int
    peak_populations: tuple[int, ...]
    link_bytes: int
    factored: tuple[tuple[factored.Case, ...], tuple[int, ...]]
    budget: float


def networks(small: int, large: int) -> tuple[factored.Case, ...]:
    """The networks of `benchmarks.factored`, of so many parameters."""
    partial, in_words = functools.partial, f"{large / 10**6:g}M"
    return (
        factored.Case(
            f"perceptron {in_words}",
            partial(models.perceptron, large, 32),
            "32 samples",
            64,
            eggroll.perceptron,
        ),
        factored.Case(
            f"transformer {in_words}",
            partial(models.transformer, large, 8, 128),
            "8 x 128 tokens",
            64,
            eggroll.transformer,
        ),
        factored.Case(
            "transformer 1M",
            partial(models.transformer, small, 8, 8),
            "8 x 8 tokens",
            64,
            eggroll.transformer,
        ),
        factored.Case("decoding 1M", partial(models.decoding, small, 4), "4 x 64 tokens", 64),
        factored.Case(
            f"perceptron {in_words}",
            partial(models.perceptron, large, 512),
            "512 samples",
            64,
            eggroll.perceptron,
        ),
        factored.Case(
            f"convolutions {in_words}", partial(models.convolutions, large, 8), "8 images", 64
        ),
        factored.Case("policy 64 x 64", partial(models.policy, 64**2, 1), "200 steps", 512),
        factored.Case("recurrent 1M", partial(models.recurrent, small, 8), "8 x 16 steps", 64),
    )


ACCELERATOR = Plan(
    (10**7, 10**8, 10**9),
    1024,
    10**8,
    (4, 64),
    2**30,
    (networks(10**6, 10**8), (4, 16, 64)),
    540.0,
)
CPU = Plan((10**5, 10**6), 64, 10**6, (4,), 2**26, (networks(10**4, 10**5)[:1], (16,)), 105.0)


class Timer:
    """The time that is left, and the share of it that one case may take."""

    def __init__(self, budget: float) -> None:
        """Starts now.

        Args:
            budget: seconds.
        """
        self._end = time.monotonic() + budget

    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - time.monotonic())

    def rounds(self, seconds: float, share: float) -> int:
        """How many rounds of so many seconds to run, after one to warm up.

        Those that fit the share of the time that is left, or 3 if only these fit all of it.
        """
        fitting = int(self.left() / max(seconds, 1e-6)) - 1
        shared = int(self.left() * share / max(seconds, 1e-6)) - 1
        return min(ROUNDS, max(shared, min(3, fitting)))


def main() -> None:
    """Measures everything and saves after each row."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if sys.argv[1:]:
        print(json.dumps(peak_child(*json.loads(sys.argv[1]))))
        return
    platform = jax.local_devices()[0].platform
    plan = CPU if platform == "cpu" else ACCELERATOR
    name = "gpu" if platform in ("gpu", "cuda", "rocm") else f"gpu_{platform}"
    timer, rows = Timer(plan.budget), []
    for about, case in cases(plan, timer):
        started = time.monotonic()
        rows += [{**about, **row} for row in attempt(case, timer)]
        measure.save(name, rows, budget=plan.budget)
        print(f"{timer.left():4.0f} s left, {time.monotonic() - started:3.0f} s", about, flush=True)


def cases(plan: Plan, timer: Timer) -> Iterator[tuple[dict[str, Any], Callable[[], Rows]]]:
    """What each row is about, and the function that measures it."""
    for direction in ("to host", "to device"):
        about = {"case": "link", "direction": direction, "bytes": plan.link_bytes}
        yield about, functools.partial(measure_link, direction, plan.link_bytes)
    for population in plan.peak_populations:
        for memory in MEMORY:
            about = {"case": "peak", "memory": memory, "population": population}
            about |= {"parameters": plan.peak_size, "samples": plan.samples}
            arguments = (memory, population, plan.peak_size, plan.samples)
            yield about, functools.partial(measure_peak, timer, *arguments)
    cases, chunks = plan.factored
    for case in cases:
        about = {"case": "factored", "model": case.model, "on": case.on}
        yield about, functools.partial(measure_factored, timer, case, chunks)
    for parameters, base in itertools.product(plan.sizes, idle.BASES):
        yield (
            {"case": "idle", "base": base, "parameters": parameters, "samples": plan.samples},
            functools.partial(measure_idle, timer, base, parameters, plan.samples),
        )
    for population, parameters in itertools.product(POPULATIONS, plan.sizes):
        about = {"case": "cycle", "population": population, "parameters": parameters}
        yield (
            {**about, "samples": plan.samples},
            functools.partial(measure_cycle, timer, parameters, plan.samples, population),
        )


def attempt(case: Callable[[], Rows], timer: Timer) -> Rows:
    """The rows of a case, or one that says why there are none."""
    if timer.left() <= 0:
        return [not_run("no time is left")]
    try:
        return case()
    except Exception as error:  # a long run goes on with the next case
        return [not_run(reason(error))]


def not_run(reason: str) -> dict[str, Any]:
    """The part of a row that stands for numbers."""
    return {"not_run": f"not run: {reason}"}


def measure_link(direction: str, size: int) -> Rows:
    """Bytes a second of one large array that is moved between the device and pinned memory."""
    device = jax.local_devices()[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if "pinned_host" not in kinds:
        return [not_run("the platform has no pinned host memory")]
    here = jax.sharding.SingleDeviceSharding(device)
    there = here.with_memory_kind("pinned_host")
    array = jax.device_put(jnp.ones(size // 4, jnp.float32), here)
    source, target = (array, there)
    if direction == "to device":
        source, target = jax.device_put(array, there), here
    jax.block_until_ready(jax.device_put(source, target))
    speeds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(jax.device_put(source, target))
        speeds.append(size / (time.perf_counter() - start))
    return [{"bytes_per_second": measure.spread(speeds)}]


def measure_peak(timer: Timer, *arguments: Any) -> Rows:
    """Peak device memory of cycles, from a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", json.dumps(arguments)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        timeout=max(1.0, timer.left()),
    )
    if done.returncode:
        return [not_run((done.stderr.strip().splitlines() or ["the process ended"])[-1][:200])]
    return [json.loads(done.stdout.splitlines()[-1])]


def peak_child(memory: str, population: int, parameters: int, samples: int) -> dict[str, Any]:
    """Two cycles in this process; null where the platform keeps no count of its memory."""
    problem = placed(models.perceptron(parameters, samples))
    params_bytes, batch = 4 * models.size(problem.params), problem.batch
    method = side_by_side.ours(population, "full_rank", memory, problem.loss)
    state = on_device(method.start(problem.params))
    del problem  # the step takes over the memory of the parameters
    compiled = jax.jit(method.step, donate_argnums=0).lower(state, batch).compile()
    for _ in range(2):
        state = jax.block_until_ready(compiled(state, batch))
    stats = jax.local_devices()[0].memory_stats() or {}
    sizes = compiled.memory_analysis()
    peak = stats.get("peak_bytes_in_use")
    return {
        "params_bytes": params_bytes,
        "peak_bytes_in_use": peak,
        "peak_over_params": None if peak is None else peak / params_bytes,
        "program_bytes": side_by_side.held_bytes(sizes),
        "program_host_bytes": sizes.host_temp_size_in_bytes,
    }


def measure_factored(timer: Timer, case: factored.Case, chunks: tuple[int, ...]) -> Rows:
    """A row for each way to evaluate the members of low-rank noise."""
    if timer.left() < 45:
        return [not_run(f"{timer.left():.0f} s are left")]
    return factored.measure_case(case, ROUNDS, chunks, placed)


def measure_idle(timer: Timer, base: str, parameters: int, samples: int) -> Rows:
    """A row for the base alone, in the graph, and decided when the step is traced."""
    problem = placed(models.perceptron(parameters, samples))
    programs = idle.programs(idle.BASES[base](), problem)
    probe = measure.loop(programs["base"][0], on_device(programs["base"][1]), steps=4)
    seconds = timed(probe) / 4
    del probe, problem
    steps = max(2, min(500, round(0.2 / seconds)))
    rounds = timer.rounds(3 * steps * seconds, share=0.15)
    if rounds < 3:
        return [not_run(f"a step takes {seconds:.2g} s, {timer.left():.0f} s are left")]
    runs = {}
    for name in list(programs):
        step, start = programs.pop(name)
        runs[name] = measure.loop(step, on_device(start), steps)
        del start  # the run has a copy
    timings = measure.compare(runs, "base", rounds)
    return [{"form": name, "steps": steps, **timing} for name, timing in timings.items()]


def measure_cycle(timer: Timer, parameters: int, samples: int, population: int) -> Rows:
    """A row for the forward passes alone, and for every kind of noise and memory."""
    problem = placed(models.perceptron(parameters, samples))
    forwards = noise.forwards(problem, population + 1)
    runs, seconds, rows = {"forwards": forwards}, timed(forwards), {}
    rows["forwards"] = {"noise": None, "memory": None, "forwards": population + 1}
    for kind in noise.KINDS:
        for memory in MEMORY:
            name = f"{kind}, {memory}"
            rows[name] = {"noise": kind, "memory": memory, "forwards": population + 1}
            if timer.left() <= 0:
                rows[name] |= not_run("no time is left")
                continue
            try:
                run = one_cycle(problem, population, kind, memory)
                seconds += timed(run)
                runs[name] = run
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                rows[name] |= not_run(reason(error))
    rounds = timer.rounds(seconds, share=0.3)
    if rounds < 3:
        why = not_run(f"a round takes {seconds:.1f} s, {timer.left():.0f} s are left")
        return [why | row for row in rows.values()]
    timings = measure.compare(runs, "forwards", rounds)
    for name, timing in timings.items():
        rows[name] |= timing
        host = timings.get(f"{rows[name]['noise']}, host")
        if rows[name]["memory"] == "replay" and host:
            median = timing["seconds"]["median"] / host["seconds"]["median"]
            rows[name]["median_over_median_of_host"] = median
    return list(rows.values())


def one_cycle(problem: models.Problem, population: int, kind: str, memory: str) -> measure.Run:
    """A run of one update with a cycle, from the same parameters every time.

    Raises:
        MemoryError: it does not fit the device or the host.
    """
    method = side_by_side.ours(population, kind, memory, problem.loss)
    state = on_device(method.start(problem.params))
    compiled = jax.jit(method.step).lower(state, problem.batch).compile()
    sizes = compiled.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
        check_room("device", side_by_side.held_bytes(sizes) - sizes.argument_size_in_bytes, free)
    free_on_host = side_by_side.available_bytes()
    if free_on_host is not None:
        check_room("host", sizes.host_temp_size_in_bytes, free_on_host)
    return lambda: compiled(state, problem.batch)


def check_room(place: str, needed: int, free: int) -> None:
    """Refuses what takes more than nine tenths of what is free."""
    if needed > 0.9 * free:
        sizes = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        raise MemoryError(f"needs {place} memory of {sizes}")


def placed(problem: models.Problem) -> models.Problem:
    """The problem with its arrays on the device."""
    return problem._replace(params=on_device(problem.params), batch=on_device(problem.batch))


def on_device(tree: Any) -> Any:
    """The arrays committed to the first device, so that steps are compiled once."""
    return jax.device_put(tree, jax.local_devices()[0])


def timed(run: measure.Run) -> float:
    """Seconds of the second of two calls."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def reason(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


if __name__ == "__main__":
    main()
