"""What a train step costs to compile, over the base's: `python -m benchmarks.compile`.

Process CPU seconds of `jax.jit(step).lower(...)` and of `.compile()`, on trees of tens to hundreds
of leaves that nobody stacked. Each row has the step with a cycle and the same step with the base
alone; the two take turns, and each turn gives a ratio. Nothing is run. JAX caches what it traces
and compiles, so every turn has functions of its own, and its caches are emptied.
"""

import argparse
from collections.abc import Callable
import itertools
import time
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax

from benchmarks import measure
from egd_optax import Execution, evolve, noise, presets
from xla_options import simulate_devices

simulate_devices(8)

TURNS = 5
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "default": dict,
    "replay": lambda: {"execution": Execution(memory="replay")},
    "device": lambda: {"execution": Execution(memory="device")},
    "low rank": lambda: {"noise": noise.low_rank(), "execution": Execution(evaluate="formed")},
    "factored": lambda: {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")},
    "metric preset": presets.metric,
    "metric preset, factored": lambda: {
        **presets.metric(),
        "execution": Execution(evaluate="factored"),
    },
    "4 generations": lambda: {"generations": 4},
    "batches of 8": lambda: {"execution": Execution(candidate_batch_size=8)},
    "bfloat16": dict,
    "8 devices": lambda: {"population_size": 16, "execution": _divided()},
}
PROGRAMS = ("step", "scan", "vmap")


class Block(nn.Module):
    """Attention and a perceptron of one hidden layer, each after a layer norm."""

    width: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Maps `[batch, tokens, width]` to the same."""
        attention = nn.MultiHeadDotProductAttention(num_heads=4)
        hidden = hidden + attention(nn.LayerNorm()(hidden))
        wide = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(hidden)))
        return hidden + nn.Dense(self.width)(wide)


class Transformer(nn.Module):
    """Blocks that are not stacked, between an embedding and a head."""

    layers: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens, int `[batch, tokens]`, to logits."""
        hidden = nn.Embed(100, self.width)(tokens)
        for _ in range(self.layers):
            hidden = Block(self.width)(hidden)
        return nn.Dense(100)(nn.LayerNorm()(hidden))


class Residual(nn.Module):
    """Nine residual blocks of two convolutions, as a ResNet for small images: 66 leaves."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images, `[batch, height, width, 3]`, to logits."""
        hidden = nn.Conv(16, (3, 3))(images)
        for width in (16, 32, 64):
            for stride in (1 if width == 16 else 2, 1, 1):
                inner = nn.Conv(width, (3, 3), stride, use_bias=False)(hidden)
                inner = nn.relu(nn.GroupNorm(8)(inner))
                inner = nn.GroupNorm(8)(nn.Conv(width, (3, 3), use_bias=False)(inner))
                if stride > 1:
                    hidden = nn.Conv(width, (1, 1), stride, use_bias=False)(hidden)
                hidden = nn.relu(hidden + inner)
        return nn.Dense(10)(hidden.mean((1, 2)))


def network(model: nn.Module, inputs: jax.Array) -> tuple[Any, Any, Callable[..., jax.Array]]:
    """The shapes of its parameters, inputs, and its loss."""

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        logits = model.apply(params, inputs).astype(jnp.float32)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    return jax.eval_shape(model.init, jax.random.key(0), inputs), inputs, loss


def matrices(count: int) -> tuple[Any, Any, Callable[..., jax.Array]]:
    """So many square matrices of 16 rows, with tanh between."""

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        hidden = inputs
        for matrix in params:
            hidden = jnp.tanh(hidden @ matrix)
        return jnp.mean(hidden.astype(jnp.float32) ** 2)

    params = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * count
    return params, jnp.ones((4, 16)), loss


MODELS: dict[str, Callable[[], tuple[Any, Any, Callable[..., jax.Array]]]] = {
    "transformer of 6 layers": lambda: network(Transformer(6, 64), jnp.zeros((4, 16), jnp.int32)),
    "transformer of 12 layers": lambda: network(Transformer(12, 64), jnp.zeros((4, 16), jnp.int32)),
    "residual network": lambda: network(Residual(), jnp.zeros((4, 16, 16, 3))),
    "8 matrices": lambda: matrices(8),
    "64 matrices": lambda: matrices(64),
    "200 matrices": lambda: matrices(200),
    # Beside the targets: its matrices are no small leaves.
    "transformer of 6 layers, width 256": lambda: network(
        Transformer(6, 256), jnp.zeros((4, 16), jnp.int32)
    ),
}


def main() -> None:
    """Measures what is asked for and saves after each row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--programs", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--keep", action="store_true", help="save to results/compile.json")
    arguments = parser.parse_args()
    kept = {_label(row): row for row in measure.load("compile")["rows"]} if arguments.keep else {}
    for model in arguments.models:
        for setting in arguments.settings:
            for program in arguments.programs:
                if program != "step" and setting not in ("default", "metric preset"):
                    continue
                row = measure_compilation(model, setting, program, arguments.turns)
                if arguments.keep:
                    kept[_label(row)] = {**row, "date": measure.about_this_run()["date"]}
                    order = itertools.product(MODELS, SETTINGS, PROGRAMS)
                    measure.save("compile", [kept[label] for label in order if label in kept])
                found = {name: f"{row[name]['median']:.2f}" for name in ("trace", "compile")}
                seconds = {name: f"{row[name]:.2f}" for name in ("seconds", "base_seconds")}
                print(model, "|", setting, "|", program, found, seconds, flush=True)


def _label(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["setting"], row["program"]


def measure_compilation(model: str, setting: str, program: str, turns: int) -> dict[str, Any]:
    """A row: seconds to trace and to compile a step, and both over the base's."""
    seconds: dict[str, list[tuple[float, float]]] = {"base": [], "evolve": []}
    lines = 0
    for turn in range(turns + 1):
        for name, found in seconds.items():
            jax.clear_caches()
            trace, compiling, text = _compiled(model, setting, program, alone=name == "base")
            if turn:  # the first turn loads what JAX loads late
                found.append((trace, compiling))
            lines = text.count("\n")
    pairs = list(zip(seconds["evolve"], seconds["base"], strict=True))
    return {
        "model": model,
        "setting": setting,
        "program": program,
        "leaves": len(jax.tree.leaves(MODELS[model]()[0])),
        "hlo_lines": lines,
        "seconds": measure.spread([one[1] for one, _ in pairs])["median"],
        "base_seconds": measure.spread([base[1] for _, base in pairs])["median"],
        "trace": measure.spread([one[0] / base[0] for one, base in pairs]),
        "compile": measure.spread([one[1] / base[1] for one, base in pairs]),
    }


def _compiled(model: str, setting: str, program: str, *, alone: bool) -> tuple[float, float, str]:
    """CPU seconds to trace, CPU seconds to compile, and the compiled program."""
    params, inputs, loss = MODELS[model]()
    if setting == "8 devices":  # the base's program is one for eight devices too
        whole = NamedSharding(_mesh(), PartitionSpec())
        spread = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)  # noqa: E731
        params, inputs = jax.tree.map(spread, (params, inputs))
    if setting == "bfloat16":
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    base = optax.adam(1e-3)
    tx = optax.with_extra_args_support(base) if alone else evolve(base, **SETTINGS[setting]())

    def step(carry: tuple[Any, Any], inputs: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        grads = jax.grad(loss)(params, inputs)
        updates, state = tx.update(
            grads, state, params, value_fn=lambda params: loss(params, inputs)
        )
        return (optax.apply_updates(params, updates), state), None

    carry = params, jax.eval_shape(tx.init, params)
    function: Callable[..., Any] = step
    if program == "scan":
        function = lambda carry, inputs: jax.lax.scan(step, carry, inputs)  # noqa: E731
        inputs = jax.ShapeDtypeStruct((2, *inputs.shape), inputs.dtype)
    if program == "vmap":
        function = jax.vmap(step, in_axes=(0, None))
        carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype), carry)
    start = time.process_time()
    lowered = jax.jit(function).lower(carry, inputs)
    traced = time.process_time()
    compiled = lowered.compile()
    return traced - start, time.process_time() - traced, compiled.as_text()


def _divided() -> Execution:
    return Execution(population_axis="pop", mesh=_mesh())


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))


if __name__ == "__main__":
    main()
