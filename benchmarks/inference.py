"""What an evolution strategy holds beside plain inference, for a transformer of 7B parameters.

Bytes of device memory of one chip, of programs that are compiled ahead of time for chips that are
not here, and nothing runs: `python -m benchmarks.inference`, in the environment of `make test-aot`.
A forward pass alone is the control. A strategy has no gradient, `evolve(optax.set_to_zero(), ...)`,
and its parameters and state are donated. Weights are in bfloat16, their layers stacked and scanned.
On eight chips every weight is sharded, and gathered where it is used.
"""

import argparse
import itertools
import os
from pathlib import Path
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the chips are compiled for, none is started

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from benchmarks import measure, tpu
from benchmarks.pod_plan import Model, make_loss, params_on
from egd_optax import Execution, accept, evolve, noise, recombine
from xla_options import known

ROOT = Path(__file__).parents[1]
MODEL = Model(4096, 32, 11008, 32, 32)
# The number of members must not matter.
POPULATIONS = 32, 512
TOKENS = 512
# By name, the memory of a chip in bytes and its topologies by their number of chips.
CHIPS = {
    "TPU v5e": (16 * 2**30, {1: "v5e:2x2", 8: "v5e:2x4"}),
    "H100": (80 * 2**30, {1: "1x1x1", 8: "1x1x8"}),
}


def of_layers(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The axis of the layers, of a leaf that has one."""
    return (0,) if len(leaf.shape) == 3 else ()


GAUSSIAN = noise.gaussian(relative=False)
LOW_RANK = noise.low_rank(relative=False, batch_axis=of_layers)
# What is compiled: a forward pass, or the noise of a strategy and how it evaluates members.
METHODS: dict[str, Any] = {
    "inference": None,
    "gaussian, formed": (GAUSSIAN, "formed"),
    "low rank, formed": (LOW_RANK, "formed"),
    "low rank, factored": (LOW_RANK, "factored"),
}


def main() -> None:
    """Compiles what is asked for, and saves after each row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--chips", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--populations", nargs="+", type=int, default=list(POPULATIONS))
    arguments = parser.parse_args()
    asked = itertools.product(
        arguments.targets, arguments.chips, arguments.methods, arguments.populations
    )
    for target, chips, method, population in asked:
        if METHODS[method] is None and population != arguments.populations[0]:
            continue  # a forward pass is of no population
        row = measure_case(target, chips, method, population)
        print(row, flush=True)
        _save(row)


def measure_case(
    target: str, chips: int, method: str, population: int = POPULATIONS[0], model: Model = MODEL
) -> dict[str, Any]:
    """One row: what a chip holds."""
    mesh = Mesh(np.array(_topology(target, chips).devices[:chips]), ("fsdp",))
    params = params_on(model, mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    row = {"target": target, "chips": chips, "method": method, "parameters": size}
    if METHODS[method] is not None:
        row["population"] = population
    start = time.perf_counter()
    try:
        held = _held(target, mesh, params, model, METHODS[method], population)
    except jax.errors.JaxRuntimeError as error:  # it does not fit, and says by how much
        return {**row, "not_compiled": str(error).split("\n")[0]}
    return {
        **row,
        "held": held,
        "over_params": held / (2 * size / chips),
        "fits": held <= CHIPS[target][0],
        "compile_seconds": time.perf_counter() - start,
    }


def _held(
    target: str, mesh: Mesh, params: Any, model: Model, settings: Any, population: int
) -> int:
    """Bytes of arguments, of results that are not donated, and of what the program takes."""
    loss = make_loss(model)
    count = NamedSharding(mesh, PartitionSpec())
    tokens = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32, sharding=count)
    with jax.set_mesh(mesh):
        if settings is None:
            lowered = jax.jit(loss).lower(params, tokens)
        else:
            lowered = _step(loss, settings, population, params, tokens)
        # Its analysis is right for a TPU too where no loops are nested, as in a forward pass.
        if target.startswith("TPU") and settings is not None:
            compiled, taken = tpu.compile_measured(lowered)
        else:
            compiled = lowered.compile(None if target.startswith("TPU") else known("untuned"))
            taken = compiled.memory_analysis().temp_size_in_bytes
    used = compiled.memory_analysis()
    whole = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return int(whole + taken)


def _step(
    loss: Any, settings: Any, population: int, params: Any, tokens: jax.ShapeDtypeStruct
) -> Any:
    """A generation on every step, lowered."""
    kind, evaluate = settings
    tx = evolve(
        optax.set_to_zero(),
        evolve_every=1,
        population_size=population,
        antithetic=True,
        sigma=1e-3,
        noise=kind,
        recombine=recombine.centered_rank(),
        accept=accept.always(),
        execution=Execution(
            memory="replay",
            evaluate=evaluate,
            candidate_batch_size=2 if evaluate == "factored" else None,
        ),
    )

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        updates, state = tx.update(None, state, params, value_fn=loss, tokens=tokens)
        return optax.apply_updates(params, updates), state

    count = tokens.sharding
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=count),
        jax.eval_shape(tx.init, params),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
    return jitted.lower(params, state, tokens)


def _topology(target: str, chips: int) -> topologies.TopologyDescription:
    name = CHIPS[target][1][chips]
    if target.startswith("TPU"):
        return tpu.topology(name)
    config = (ROOT / "aot" / "h100.txtpb").read_text()
    return topologies.get_topology_desc(platform="cuda", target_config=config, topology=name)


def _save(row: dict[str, Any]) -> None:
    """Adds a row to the results, in the place of an older one of the same case."""
    path = measure.RESULTS / "inference.json"
    rows = measure.load("inference")["rows"] if path.exists() else []
    keys = ("target", "chips", "method", "population")
    found = {tuple(old.get(key) for key in keys): old for old in [*rows, row]}
    order = itertools.product(CHIPS, (1, 8), METHODS, (None, *POPULATIONS))
    measure.save(
        "inference",
        [found[case] for case in order if case in found],
        versions=measure.about_this_run("libtpu")["versions"],
        tokens=TOKENS,
    )


if __name__ == "__main__":
    main()
