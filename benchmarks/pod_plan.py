"""What a cycle sends between the chips of a TPU pod, and what a chip holds, from 1B to 70B.

Decoder-only transformers in bfloat16, of the widths of well-known models and a vocabulary of
32,000, their layers stacked and scanned, train with `optax.adamw`. Every weight is sharded
over "fsdp" and gathered where it is used, layer by layer; a second axis "pop", where there is
one, divides the members of a cycle. Train steps with a cycle, without one, and a forward pass
alone are compiled ahead of time for TPUs that are not here, and nothing runs:
`python -m benchmarks.pod_plan`, in the environment of `make test-aot`.

A size in bytes is what a chip receives from the others in one cycle: that of the step with a
cycle, less that of the step without. An exchange counts as often as the loops around it run;
loops that run at most once, to draw a member, count once. All of it follows a formula, with
P members, pop * fsdp chips, N parameters of 2 bytes and a forward pass that gathers every
weight once:

    forward  = 2 N (fsdp - 1) / fsdp
    forwards = ceil(P / pop) + 1              the members of a chip, and the child
    own      = 8 N / fsdp (pop - 1) / pop     the sum for the child, in float32 to all chips
             + 4 P (pop - 1) / pop            the fitness of the members
    cycle    = forwards * forward + own

No member is sent, nor noise of the size of a parameter. XLA divides the draws of the factors
of low-rank noise, rows + columns numbers for every matrix, and sends some of these, which the
formula leaves out.

The bytes that a chip holds are arguments, results that are not donated, and what the program
takes beside them. Above the step without a cycle, in shards of the parameters:

    held = 1 + 1                              the updates, and the parent of low-rank members
         + 2 / pop                            the sum over the elites, in float32
         + (1 where pop > 1)                  the child, gathered from its parts
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # TPUs are compiled for, none is started

import argparse
from collections.abc import Callable
import functools
import itertools
import math
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from benchmarks import measure, tpu
from benchmarks.hlo import parse
from egd_optax import Execution, evolve, noise

TOPOLOGIES = {8: "v5p:2x2x2", 64: "v5p:4x4x4", 512: "v5p:8x8x8"}
POPULATION = 16
VOCABULARY = 32_000
TOKENS = 1024  # of the one sequence that a chip trains on, and of that it scores members on
# Devices along "pop", and where elites live: divided members are stored nowhere.
LAYOUTS = {"host": (1, "host"), "replay": (1, "replay"), "pop": (8, "replay")}


class Model(NamedTuple):
    """The sizes of a transformer."""

    width: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of the parameters; those of the layers are stacked."""
        width, kv = self.width, self.width // self.heads * self.kv_heads
        layer = {
            "attention_norm": (width,),
            "query": (width, width),
            "key": (width, kv),
            "value": (width, kv),
            "out": (width, width),
            "hidden_norm": (width,),
            "gate": (width, self.hidden),
            "up": (width, self.hidden),
            "down": (self.hidden, width),
        }
        return {
            "embedding": (VOCABULARY, width),
            "head": (width, VOCABULARY),
            "layers": {name: (self.layers, *shape) for name, shape in layer.items()},
        }


MODELS = {
    "1B": Model(2048, 16, 8192, 32, 8),
    "8B": Model(4096, 32, 14336, 32, 8),
    "70B": Model(8192, 80, 28672, 64, 8),
}


class Compiled(NamedTuple):
    """What one chip does in a program.

    Attributes:
        received: bytes from other chips.
        held: bytes of device memory.
        on_host: bytes of host memory.
        seconds: how long it took to compile.
    """

    received: float
    held: int
    on_host: int
    seconds: float


def main() -> None:
    """Compiles what is asked for; saves every row when it is there, beside the old ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pod_plan")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--chips", nargs="+", type=int, default=list(TOPOLOGIES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    arguments = parser.parse_args()
    for chips, layout, name in itertools.product(
        arguments.chips, arguments.layouts, arguments.models
    ):
        pop, memory = LAYOUTS[layout]
        if pop < chips:
            row = measure_case(name, chips, pop, memory)
            print(row, flush=True)
            _save(row)


def measure_case(name: str, chips: int, pop: int, memory: str) -> dict[str, Any]:
    """One row: a step with a cycle, the formula, and the step without."""
    model = MODELS[name]
    leaves = jax.tree.leaves(params_on(model, _mesh(chips, pop)))
    row = {
        "model": name,
        "parameters": sum(leaf.size for leaf in leaves),
        "chips": chips,
        "pop": pop,
        "memory": memory,
    }
    row |= formula(row["parameters"], pop, chips // pop)
    idle, forward = (compile_step(name, chips, pop, what) for what in (None, "forward"))
    row |= {
        "forward_received": forward.received,
        "idle_received": idle.received,
        "idle_held": idle.held,
        "formula_held": idle.held + row["formula_cycle_held"],
    }
    try:
        cycle = compile_step(name, chips, pop, memory)
    except jax.errors.JaxRuntimeError as error:  # it does not fit, and says by how much
        return {**row, "not_compiled": str(error).split("\n")[0]}
    received = cycle.received - idle.received
    return {
        **row,
        "received": received,
        "own_received": received - row["forwards"] * forward.received,
        "held": cycle.held,
        "on_host": cycle.on_host,
        "compile_seconds": cycle.seconds,
    }


def formula(parameters: int, pop: int, fsdp: int) -> dict[str, float]:
    """The formula above: forward passes of a chip, and bytes."""
    forwards = math.ceil(POPULATION / pop) + 1
    shard = 2 * parameters / fsdp
    own = (4 * shard + 4 * POPULATION) * (pop - 1) / pop
    return {
        "forwards": forwards,
        "formula_received": forwards * shard * (fsdp - 1) + own,
        "formula_own_received": own,
        "formula_cycle_held": shard * (2 + 2 / pop + (pop > 1)),
    }


@functools.cache
def compile_step(name: str, chips: int, pop: int, what: str | None) -> Compiled:
    """Compiles a program.

    Args:
        name: a key of `MODELS`.
        chips: a key of `TOPOLOGIES`.
        pop: the size of the axis that divides members; 1 for none.
        what: "host" or "replay", the memory mode of a step with a cycle; None for one
            without; "forward" for a forward pass.
    """
    mesh = _mesh(chips, pop)
    loss = make_loss(MODELS[name])
    params = params_on(MODELS[name], mesh)
    trained, scored = _sequences(mesh, mesh.axis_names), _sequences(mesh, ("fsdp",))
    division = {"population_axis": "pop", "mesh": mesh} if pop > 1 else {}
    memory = what if what in ("host", "replay") else "host"
    tx = evolve(
        optax.adamw(1e-4),
        population_size=POPULATION,
        noise=noise.low_rank(),
        execution=Execution(memory=memory, **division),
    )

    def step(params: Any, state: Any, trained: jax.Array, scored: jax.Array) -> Any:
        grads = jax.grad(loss)(params, trained)
        updates, state = tx.update(
            grads,
            state,
            params,
            value_fn=lambda member: loss(member, scored),
            evolve=what is not None,
        )
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    state = _state(tx, params, mesh)
    with jax.set_mesh(mesh):  # tells "host" which platform the program is for
        if what == "forward":
            lowered = jax.jit(loss).lower(params, scored)
        else:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
            jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
            lowered = jitted.lower(params, state, trained, scored)
        compiled, taken = tpu.compile_measured(lowered)
    used = compiled.memory_analysis()
    return Compiled(
        sum(exchange.size for exchange in parse(compiled.as_text()).collectives()),
        used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + taken,
        used.host_temp_size_in_bytes,
        time.perf_counter() - start,
    )


def make_loss(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """The mean loss of the next token, float32, of parameters and tokens."""

    def place(weight: jax.Array, *axes: str) -> jax.Array:
        # No mesh: within a cycle the axis of the members is a manual one.
        return lax.with_sharding_constraint(weight, PartitionSpec(*axes))

    @jax.custom_vjp
    def gathered(weight: jax.Array) -> jax.Array:
        return place(weight)

    # A gradient is sharded like its weight: what is gathered forward is scattered backward.
    gathered.defvjp(lambda weight: (place(weight), None), lambda _, by: (place(by, "fsdp"),))

    def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        return (jax.nn.standardize(x.astype(jnp.float32), axis=-1) * scale).astype(x.dtype)

    @jax.checkpoint
    def layer(x: jax.Array, weights: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        def times(x: jax.Array, name: str) -> jax.Array:
            return x @ gathered(weights[name])

        y = normed(x, weights["attention_norm"])
        heads = (*x.shape[:2], -1, model.width // model.heads)
        qkv = (times(y, name).reshape(heads) for name in ("query", "key", "value"))
        x += times(jax.nn.dot_product_attention(*qkv, is_causal=True).reshape(x.shape), "out")
        y = normed(x, weights["hidden_norm"])
        return x + times(jax.nn.silu(times(y, "gate")) * times(y, "up"), "down"), None

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x, _ = lax.scan(layer, gathered(params["embedding"])[tokens], params["layers"])
        logits = (x @ gathered(params["head"])).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return jnp.mean(losses)

    return loss


def _mesh(chips: int, pop: int) -> Mesh:
    devices = tpu.topology(TOPOLOGIES[chips]).devices
    if pop == 1:
        return Mesh(np.array(devices), ("fsdp",))
    return Mesh(np.array(devices).reshape(pop, -1), ("pop", "fsdp"))


def params_on(model: Model, mesh: Mesh) -> Any:
    """Matrices have their rows on "fsdp"; scales, which are small, are whole on every chip."""

    def place(shape: tuple[int, ...], stacked: int) -> jax.ShapeDtypeStruct:
        axes = (*[None] * stacked, "fsdp") if len(shape) == stacked + 2 else ()
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    shapes = model.shapes
    layers = {name: place(shape, 1) for name, shape in shapes.pop("layers").items()}
    return {"layers": layers, **{name: place(shape, 0) for name, shape in shapes.items()}}


def _state(tx: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """The optimizer's state, where it is like a parameter sharded like it."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return optax.tree.map_params(
        tx,
        lambda leaf, param: place(leaf, param.sharding),
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda leaf: place(leaf, NamedSharding(mesh, PartitionSpec())),
    )


def _sequences(mesh: Mesh, axes: tuple[str, ...]) -> jax.ShapeDtypeStruct:
    """One sequence a chip, or with fewer axes one for every group of chips along the others."""
    count = math.prod(mesh.shape[name] for name in axes)
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    return jax.ShapeDtypeStruct((count, TOKENS), jnp.int32, sharding=sharding)


def _save(row: dict[str, Any]) -> None:
    """Adds a row to the results, in the place of an older one of the same case."""
    keys = ("memory", "pop", "chips", "parameters")
    path = measure.RESULTS / "pod_plan.json"
    rows = measure.load("pod_plan")["rows"] if path.exists() else []
    found = {tuple(old[key] for key in keys): old for old in [*rows, row]}
    measure.save(
        "pod_plan",
        [found[case] for case in sorted(found)],
        versions=measure.about_this_run("libtpu")["versions"],
        target="TPU v5p",
        base="adamw",
        population=POPULATION,
        elites=math.ceil(POPULATION / 4),
        vocabulary=VOCABULARY,
        tokens=TOKENS,
    )


if __name__ == "__main__":
    main()
