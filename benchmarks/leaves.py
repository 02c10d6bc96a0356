"""What a leaf costs to compile, from hundreds of them to thousands: `python -m benchmarks.leaves`.

Process CPU seconds to trace, lower and compile a train step with a cycle, and the same step of the
base alone, which returns the loss too. The two take turns, and each turn gives a ratio. Nothing is
run. The growth a leaf is the difference between two rows, over that of their leaves. Trees of as
many shapes as leaves take minutes a turn: ask for fewer turns, or leaves.
"""

import argparse
from collections.abc import Callable
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure
from egd_optax import Execution, evolve, noise

Shapes = list[tuple[int, ...]]
COUNTS = (250, 500, 1000, 2000)
TURNS = 3
DEPTH = 16  # matrices in a chain
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "replay": {"execution": Execution(memory="replay")},
    "antithetic": {"antithetic": True},
    "low rank": {"noise": noise.low_rank(), "execution": Execution(evaluate="formed")},
}


def vectors(params: list[jax.Array], inputs: jax.Array) -> jax.Array:
    """The loss of vectors: all of them side by side."""
    sums = [jnp.sum(jnp.tanh(inputs[0, 0] * leaf)) for leaf in params]
    return jnp.mean(jnp.stack(sums))


def matrices(params: list[jax.Array], inputs: jax.Array) -> jax.Array:
    """The loss of matrices: chains of a few layers, side by side."""
    outputs = []
    for first in range(0, len(params), DEPTH):
        hidden = inputs[:, : params[first].shape[0]]
        for matrix in params[first : first + DEPTH]:
            hidden = jnp.tanh(hidden @ matrix)
        outputs.append(jnp.mean(hidden**2))
    return jnp.mean(jnp.stack(outputs))


def layers(params: list[jax.Array], inputs: jax.Array) -> jax.Array:
    """The loss of one chain of layers, of matrices and their biases."""
    hidden = inputs[:, : params[0].shape[0]]
    for wide, bias, narrow, shift in zip(*(params[at::4] for at in range(4)), strict=True):
        hidden = hidden + jnp.tanh(hidden @ wide + bias) @ narrow + shift
    return jnp.mean(hidden**2)


def chain(count: int) -> Shapes:
    """At most 2162 matrices, no two of one shape, each of which follows on the one before."""
    widths = range(40, 87)  # of a prime length: each offset leads through all of them
    shapes, at = [], 0
    for index in range(count):
        after = (at + index // len(widths) + 1) % len(widths)
        shapes.append((widths[at], widths[after]))
        at = after
    return shapes


TREES: dict[str, tuple[Callable[[int], Shapes], Callable[..., jax.Array]]] = {
    "vectors of 8": (lambda count: [(8,)] * count, vectors),
    "matrices of 64 x 64": (lambda count: [(64, 64)] * count, matrices),
    "layers of 4 shapes": (
        lambda count: [(64, 256), (256,), (256, 64), (64,)] * (count // 4),
        layers,
    ),
    "vectors, all different": (lambda count: [(8 + at,) for at in range(count)], vectors),
    "matrices, all different": (chain, matrices),
}


def main() -> None:
    """Measures what is asked for and saves after each row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaves", description=__doc__)
    parser.add_argument("--trees", nargs="*", default=list(TREES))
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--counts", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--turns", type=int, default=TURNS, help="at least 2")
    parser.add_argument("--keep", action="store_true", help="save to results/leaves.json")
    arguments = parser.parse_args()
    there = arguments.keep and (measure.RESULTS / "leaves.json").exists()
    kept = {_label(row): row for row in measure.load("leaves")["rows"]} if there else {}
    asked = itertools.product(arguments.trees, arguments.settings, arguments.counts)
    for tree, setting, count in asked:
        row = measure_tree(tree, setting, count, arguments.turns)
        print({name: row[name] for name in ("tree", "setting", "leaves", "over_base", "seconds")})
        if arguments.keep:
            kept[_label(row)] = {**row, "date": measure.about_this_run()["date"]}
            order = itertools.product(TREES, SETTINGS, sorted({label[2] for label in kept}))
            measure.save("leaves", [kept[label] for label in order if label in kept])


def _label(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["tree"], row["setting"], row["leaves"]


def measure_tree(tree: str, setting: str, count: int, turns: int) -> dict[str, Any]:
    """A row: seconds of a step with a cycle and of the base's, and their ratio."""
    base = optax.adam(1e-3)
    steps = {
        "base": optax.with_extra_args_support(base),
        "evolve": evolve(base, **SETTINGS[setting]),
    }
    shapes, loss = TREES[tree]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        # The first turn loads what JAX loads late: a few leaves do.
        for name, tx in steps.items():
            jax.clear_caches()
            found = compiling(tx, shapes(count if turn else 8), loss)
            if turn:
                seconds[name].append(found)
    pairs = zip(seconds["evolve"], seconds["base"], strict=True)
    return {
        "tree": tree,
        "setting": setting,
        "leaves": count,
        "seconds": measure.spread(seconds["evolve"])["median"],
        "base_seconds": measure.spread(seconds["base"])["median"],
        "over_base": measure.spread([own / base for own, base in pairs]),
    }


def compiling(tx: Any, shapes: Shapes, loss: Callable[..., jax.Array]) -> float:
    """CPU seconds to trace, lower and compile a train step."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    inputs = jax.ShapeDtypeStruct((4, 128), jnp.float32)

    def step(params: Any, state: Any, inputs: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, inputs)
        updates, state = tx.update(
            grads, state, params, value_fn=lambda params: loss(params, inputs)
        )
        return optax.apply_updates(params, updates), state, value

    state = jax.eval_shape(tx.init, params)
    start = time.process_time()
    jax.jit(step).lower(params, state, inputs).compile()
    return time.process_time() - start


if __name__ == "__main__":
    main()
