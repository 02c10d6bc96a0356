"""A draw of normal numbers as a cycle makes it, over that of `jax.random`."""

from collections.abc import Callable, Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from egd_optax.backend import random

SIZES = {"64k": (256, 256), "1M": (1024, 1024), "4M": (2048, 2048)}
COMPILATIONS = 5
# Draws from a key, uint32 `[2]`, numbers of a shape.
Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def of_jax(key_data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The numbers of `jax.random`."""
    return jax.random.normal(jax.random.wrap_key_data(key_data, impl="threefry2x32"), shape)


def of_a_cycle(key_data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The numbers of a cycle, by counters."""
    return random.normals_of(key_data, jnp.uint32(0), 0, shape)


# By their names in the results.
DRAWS: dict[str, Draw] = {"jax.random": of_jax, "written out": of_a_cycle}


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for label, shape in list(SIZES.items())[: 1 if quick else None]:
        yield f"{label} numbers", lambda a=(label, shape): measure_draws(*a)


def measure_draws(label: str, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for either generator: time, temporary memory, and seconds to compile."""
    key_data = jnp.array([0, 1], jnp.uint32)
    programs = {name: jax.jit(draw_of(draw, shape)) for name, draw in DRAWS.items()}
    runs = {name: functools.partial(program, key_data) for name, program in programs.items()}
    timings = measure.compare(runs, "jax.random", rounds=25)
    seconds: dict[str, list[float]] = {name: [] for name in DRAWS}
    for _ in range(COMPILATIONS):
        for name, draw in DRAWS.items():
            lowered = jax.jit(draw_of(draw, shape)).lower(key_data)
            start = time.perf_counter()
            compiled = lowered.compile()
            seconds[name].append(time.perf_counter() - start)
            temporary = compiled.memory_analysis().temp_size_in_bytes
            timings[name]["temp_over_numbers"] = temporary / (4 * shape[0] * shape[1])
    return [
        {
            "generator": name,
            "size": label,
            "compile_seconds": measure.spread(seconds[name]),
            **timings[name],
        }
        for name in DRAWS
    ]


def draw_of(draw: Draw, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """A function that draws from a key; a new one each time, so that nothing is compiled yet."""
    return lambda key_data: draw(key_data, shape)
