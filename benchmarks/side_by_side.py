"""One generation beside what one would use instead: evosax, and a loop written in Python.

The population, the model and the data are the same for all. Evosax gets its best case: ask, a
vmapped evaluation and tell are one program whose state is donated. Its noise has the same
standard deviation in every tensor; for the cost that makes no difference.
Times include everything that a generation does.

Memory is in units of the size of the parameters, which are counted too:

program: arguments, outputs and temporaries of the compiled program, less what is aliased.
peak: the most that a process had resident during a generation, less what it has without any
  array, once everything is compiled.
beyond a forward: the peak resident set of that process, less that of one that makes the
  parameters and runs one forward pass. In it is what JAX keeps of a larger program, some 100 MB
  that do not grow with the parameters: at small sizes it is most of this number.
"""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import gc
import importlib.metadata
import json
from pathlib import Path
import resource
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, models
from benchmarks.noise import KINDS
from egd_optax import Execution, evolve, recombine

SAMPLES = 64
SIGMA = 0.02
ELITE_FRACTION = 0.25
POPULATIONS = (16, 64)
REFERENCE = "egd_optax, full_rank, host"
NO_EVOSAX = "not run: evosax is not installed"


Loss = Callable[..., jax.Array]


class Method(NamedTuple):
    """A way to run one generation.

    Attributes:
        forwards: forward passes of a generation.
        draws: random numbers of a generation for every parameter, in words; ours are one
            more where the best elite is taken.
        start: maps parameters to the state before the first generation; may reuse them.
        step: maps the state and the batch to the next state.
        one_program: whether `step` can be jitted as a whole.
        version: of the package that it comes from, where that is not this one.
    """

    forwards: int
    draws: str
    start: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    one_program: bool = True
    version: str | None = None


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for label, parameters in list(models.SIZES.items())[: 1 if quick else None]:
        for population in POPULATIONS[: 1 if quick else None]:
            work = parameters * population
            rounds = 3 if quick or work > 5e8 else 5 if work > 1e8 else 7
            yield (
                f"{label}, population {population}",
                lambda a=(label, parameters, population, rounds): measure_case(*a),
            )


def measure_case(label: str, parameters: int, population: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    problem = models.perceptron(parameters, SAMPLES)
    about = {"size": label, "parameters": models.size(problem.params), "samples": SAMPLES}
    known = methods(population, problem.loss)
    rows: dict[str, dict[str, Any]] = {}
    for name, method in known.items():
        rows[name] = {"method": name, **about, "population": population}
        rows[name] |= describe(method, problem)
    runnable = {name: known[name] for name, row in rows.items() if "not_run" not in row}
    forward = resident_bytes(None, parameters, population)
    for name in runnable:
        generation = resident_bytes(name, parameters, population)
        rows[name] |= memory(forward, generation, 4 * about["parameters"])
    runs = {
        name: generations(method, models.perceptron(parameters, SAMPLES))
        for name, method in runnable.items()
    }
    for name, timing in measure.compare(runs, REFERENCE, rounds).items():
        rows[name] |= timing
    return list(rows.values())


def describe(method: Method | None, problem: models.Problem) -> dict[str, Any]:
    """What is known of a method before it runs, and why it does not run if so."""
    if method is None:
        return {"not_run": NO_EVOSAX}
    about: dict[str, Any] = {"forwards": method.forwards, "draws": method.draws}
    if method.version:
        about["version"] = method.version
    if not method.one_program:
        return about
    params_bytes = 4 * models.size(problem.params)
    needed, free = program_bytes(method, problem), available_bytes()
    about["program_over_params"] = needed / params_bytes
    # The states of all methods stand beside the largest program.
    wanted = needed + (method.forwards + 16) * params_bytes
    if free is not None and wanted > free:
        about["not_run"] = f"not run: needs {wanted / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return about


def memory(
    forward: dict[str, int] | None, generation: dict[str, int] | None, params_bytes: int
) -> dict[str, Any]:
    """Memory over the bytes of the parameters, from what `resident_bytes` found."""
    if forward is None or generation is None:
        return {"peak_over_params": None, "beyond_forward_over_params": None}
    return {
        "peak_over_params": (generation["peak"] - generation["without_arrays"]) / params_bytes,
        "beyond_forward_over_params": (generation["peak"] - forward["peak"]) / params_bytes,
    }


def methods(population: int, loss: Loss) -> dict[str, Method | None]:
    """Every method by its name; None for what is not installed."""
    return {
        **{
            f"egd_optax, {noise}, {memory}": ours(population, noise, memory, loss)
            for noise in KINDS
            for memory in ("host", "replay")
        },
        **{
            f"egd_optax, antithetic, {memory}": ours(
                population, "full_rank", memory, loss, antithetic=True
            )
            for memory in ("host", "replay")
        },
        "evosax Open_ES": open_es(population, loss),
        "evosax SimpleGA": simple_ga(population, loss),
        "python loop": python_loop(population, loss),
    }


def ours(
    population: int, noise: str, memory: str, loss: Loss, *, antithetic: bool = False
) -> Method:
    """A cycle around a base optimizer that stands still."""
    tx = evolve(
        optax.sgd(0.0),
        population_size=population,
        sigma=SIGMA,
        noise=KINDS[noise](),
        antithetic=antithetic,
        recombine=recombine.mean(ELITE_FRACTION),
        execution=Execution(memory=memory),
    )

    def start(params: Any) -> Any:
        return params, tx.init(params)

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, state, params, value_fn=loss, evolve=True, batch=batch)
        return optax.apply_updates(params, updates), state

    again = elite_count(population) if memory == "replay" else 0
    kind = "normal" if noise == "full_rank" else "normal for every row and column"
    draws = (population // 2 if antithetic else population - 1) + again
    return Method(population + 1 + antithetic, f"{draws} {kind}", start, step)


def open_es(population: int, loss: Loss) -> Method | None:
    """OpenAI's evolution strategy; its members are pairs of one draw and its negative."""
    try:
        from evosax.algorithms import Open_ES
    except ImportError:
        return None

    def build(params: Any) -> Any:
        return Open_ES(
            population,
            params,
            std_schedule=optax.constant_schedule(SIGMA),
        )

    def init(strategy: Any, params: Any) -> Any:
        return strategy.init(jax.random.key(0), params, strategy.default_params)

    return evosax_method(build, init, loss, population, f"{population // 2} normal")


def simple_ga(population: int, loss: Loss) -> Method | None:
    """A genetic algorithm that keeps the population between generations."""
    try:
        from evosax.algorithms import SimpleGA
    except ImportError:
        return None

    def build(params: Any) -> Any:
        strategy = SimpleGA(population, params, std_schedule=optax.constant_schedule(SIGMA))
        strategy.elite_ratio = ELITE_FRACTION
        return strategy

    def init(strategy: Any, params: Any) -> Any:
        members = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (population, *leaf.shape)), params
        )
        scores = jnp.zeros(population)
        return strategy.init(jax.random.key(0), members, scores, strategy.default_params)

    return evosax_method(
        build, init, loss, population, f"{population} normal, {population} uniform"
    )


def evosax_method(
    build: Callable[[Any], Any],
    init: Callable[[Any, Any], Any],
    loss: Loss,
    population: int,
    draws: str,
) -> Method:
    """Ask, evaluate and tell of a strategy, to be one program; the metrics are not returned.

    Args:
        build: makes the strategy from the shapes of the parameters.
        init: makes its state from the strategy and the parameters.
        loss: scores a member on a batch.
        population: members of a generation.
        draws: for `Method`.
    """
    made: list[Any] = []

    def start(params: Any) -> Any:
        made[:] = [build(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params))]
        return jax.jit(lambda params: init(made[0], params))(params)

    def step(state: Any, batch: Any) -> Any:
        (strategy,) = made
        key = jax.random.fold_in(jax.random.key(1), state.generation_counter)
        ask_key, tell_key = jax.random.split(key)
        members, state = strategy.ask(ask_key, state, strategy.default_params)
        scores = jax.vmap(loss, in_axes=(0, None))(members, batch)
        state, _ = strategy.tell(tell_key, members, scores, state, strategy.default_params)
        return state

    version = importlib.metadata.version("evosax")
    return Method(population, draws, start, step, version=version)


def python_loop(population: int, loss: Loss) -> Method:
    """A loop over candidates: draw, score and compare one by one, elites on the host."""
    score = jax.jit(loss)

    @jax.jit
    def mutate(params: Any, key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        stds = [SIGMA * jnp.maximum(jnp.sqrt(jnp.mean(leaf**2)), 1e-3) for leaf in leaves]
        mutants = [
            leaf + std * jax.random.normal(key, leaf.shape)
            for leaf, std, key in zip(leaves, stds, keys, strict=True)
        ]
        return jax.tree.unflatten(treedef, mutants)

    def start(params: Any) -> Any:
        return params, jax.random.key(0)

    def step(carry: Any, batch: Any) -> Any:
        params, key = carry
        key, *keys = jax.random.split(key, population)
        elites = [(float(score(params, batch)), 0, jax.device_get(params))]
        parent_score = elites[0][0]
        for member, member_key in enumerate(keys, start=1):
            candidate = mutate(params, member_key)
            value = float(score(candidate, batch))
            if len(elites) < elite_count(population) or value < elites[-1][0]:
                elites.append((value, member, jax.device_get(candidate)))
                elites = sorted(elites, key=lambda elite: elite[:2])[: elite_count(population)]
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(e[2] for e in elites))
        child = jax.device_put(mean)
        best = jax.device_put(elites[0][2])
        child_score = float(score(child, batch))
        ranked = [(parent_score, 0, params), (elites[0][0], 1, best), (child_score, 2, child)]
        return min(ranked, key=lambda entry: entry[:2])[2], key

    return Method(population + 1, f"{population - 1} normal", start, step, one_program=False)


def elite_count(population: int) -> int:
    """How many members recombine."""
    return -int(-population * ELITE_FRACTION // 1)


def generations(method: Method, problem: models.Problem) -> measure.Run:
    """A run of one generation that goes on where the last one ended; takes the parameters."""
    step = method.step if not method.one_program else jax.jit(method.step, donate_argnums=0)
    holder = [method.start(problem.params)]

    def run() -> Any:
        holder[0] = step(holder[0], problem.batch)
        return holder[0]

    return run


def program_bytes(method: Method, problem: models.Problem) -> int:
    """Peak bytes of the compiled generation; nothing is allocated for it."""
    state = jax.eval_shape(method.start, problem.params)
    compiled = jax.jit(method.step, donate_argnums=0).lower(state, problem.batch).compile()
    return held_bytes(compiled.memory_analysis())


def held_bytes(sizes: Any) -> int:
    """Arguments, outputs and temporaries of a program, less what is aliased."""
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return int(total - sizes.alias_size_in_bytes)


def resident_bytes(method: str | None, parameters: int, population: int) -> dict[str, int] | None:
    """What `child` returns, from a fresh process; None where that failed."""
    command = [sys.executable, "-m", "benchmarks.side_by_side"]
    argument = json.dumps([method, parameters, population])
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, argument], cwd=root, capture_output=True, text=True)
    if done.returncode:
        return None
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(method: str | None, parameters: int, population: int) -> dict[str, int]:
    """The resident set of this process during a generation, and without arrays.

    Args:
        method: the name of a method, or None for one forward pass.
        parameters: about how many.
        population: members of the generation.
    """

    def prepare() -> measure.Run:
        problem = models.perceptron(parameters, SAMPLES)
        if chosen is None:
            return lambda: score(problem.params, problem.batch)
        return generations(chosen, problem)

    loss = models.perceptron(8, 1).loss  # a program of this process that no size changes
    score = jax.jit(loss)
    chosen = methods(population, loss)[method] if method else None
    run = prepare()
    jax.block_until_ready(run())  # compiles
    del run
    gc.collect()
    forget_peak()
    without_arrays = peak_resident()
    run = prepare()
    forget_peak()
    jax.block_until_ready(run())
    return {"peak": peak_resident(), "without_arrays": without_arrays}


def forget_peak() -> None:
    """Returns what compilation left over, then starts the peak anew, where Linux allows it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Peak resident set of this process in bytes.

    From `/proc` where there is one: `ru_maxrss` of a process that was forked starts at the
    peak of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return field_bytes(status, "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Memory that programs can still have, where the system says so."""
    meminfo = Path("/proc/meminfo")
    return field_bytes(meminfo, "MemAvailable") if meminfo.exists() else None


def field_bytes(path: Path, name: str) -> int:
    """A field of a file of `/proc`, which are in KiB."""
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(child(*json.loads(sys.argv[1]))))
