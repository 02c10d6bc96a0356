"""How the runs of a method become one program."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from benchmarks.bbob.functions import FUNCTIONS
from benchmarks.bbob.instance import instance
from benchmarks.bbob.seen import Seen

DIMENSION = 20
BOUND = 5.0
# Runs of a program, one after another; more runs call it again, and compile nothing.
LANES = 15
Value = Callable[[jax.Array], jax.Array]
Numbers = dict[str, float]
# Minimises a function from a point, with random numbers of a key and settings that are numbers.
Run = Callable[..., Seen]


def minimise(
    run: Run, function: int, instances: tuple[int, ...], seeds: int, grid: list[Numbers]
) -> np.ndarray:
    """Runs a method with each of some settings on instances of a function.

    Args:
        run: the method, `run(value, x, key, **numbers)`.
        function: 1 to 24.
        instances: their numbers.
        seeds: runs on each. A seed has the same first point with every method.
        grid: the settings, of the same names.

    Returns:
        The best values `[len(grid), len(instances), seeds, len(READ_AT)]`.
    """
    made = {number: instance(function, number, DIMENSION) for number in instances}
    lanes = [
        (numbers, made[number], key_of(function, number, seed))
        for numbers in grid
        for number in instances
        for seed in range(seeds)
    ]

    def one(lane: Any) -> jax.Array:
        numbers, at, key = lane
        return run(lambda x: FUNCTIONS[function](x, at), start(key, DIMENSION), key, **numbers).best

    program = jax.jit(lambda stacked: lax.map(one, stacked))
    best = [program(stack(lanes[at : at + LANES])) for at in range(0, len(lanes), LANES)]
    found = np.concatenate(best)[: len(lanes)]
    return found.reshape(len(grid), len(instances), seeds, -1)


def stack(lanes: list[Any]) -> Any:
    """Lanes as arrays; the last is repeated up to `LANES`, so that all have one program."""
    padded = lanes + [lanes[-1]] * (LANES - len(lanes))
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *padded)


def key_of(function: int, number: int, seed: int) -> jax.Array:
    """The key of a run, the same with every method."""
    key = jax.random.fold_in(jax.random.key(0), function)
    return jax.random.fold_in(jax.random.fold_in(key, number), seed)


def start(key: jax.Array, dimension: int) -> jax.Array:
    """A uniform point of the box."""
    return jax.random.uniform(key, [dimension], float, -BOUND, BOUND)
