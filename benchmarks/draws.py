"""A draw of normal numbers as a cycle makes it, over that of `jax.random`: the same bits."""

from collections.abc import Callable, Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure

SIZES = {"64k": (256, 256), "1M": (1024, 1024), "4M": (2048, 2048)}
COMPILATIONS = 5
KEYS = {
    "jax.random": functools.partial(jax.random.wrap_key_data, impl="threefry2x32"),
    "written out": threefry.wrap_key_data,
}


def cases(quick: bool) -> Iterator[tuple[str, Any]]:
    """The name of each case, and a function that measures it and returns its rows."""
    for label, shape in list(SIZES.items())[: 1 if quick else None]:
        yield f"{label} numbers", lambda a=(label, shape): measure_draws(*a)


def measure_draws(label: str, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for either generator: time, temporary memory, and seconds to compile."""
    key_data = jnp.array([0, 1], jnp.uint32)
    draws = {name: jax.jit(draw_of(wrap, shape)) for name, wrap in KEYS.items()}
    runs = {name: functools.partial(draw, key_data) for name, draw in draws.items()}
    timings = measure.compare(runs, "jax.random", rounds=25)
    seconds: dict[str, list[float]] = {name: [] for name in KEYS}
    for _ in range(COMPILATIONS):
        for name, wrap in KEYS.items():
            lowered = jax.jit(draw_of(wrap, shape)).lower(key_data)
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
        for name in KEYS
    ]


def draw_of(
    wrap: Callable[[jax.Array], jax.Array], shape: tuple[int, int]
) -> Callable[[jax.Array], jax.Array]:
    """A function that draws from a key; a new one each time, so that nothing is compiled yet."""
    return lambda key_data: jax.random.normal(wrap(key_data), shape)
