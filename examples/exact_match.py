"""A language model that is trained on likelihood and selected on exact match.

    python -m examples.exact_match

A transformer learns to add numbers of two digits, written as characters. AdamW lowers the
cross-entropy of the answers; a cycle decodes greedily, with a cache of keys and values, and counts
the answers that are right in every digit, which has no gradient. The last lines say how many
generations a second there are with members that are formed and with members that are not.
"""

import argparse
import contextlib
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax
from rich.progress import track

from benchmarks import cycle, measure, models
from egd_optax import Execution, accept, evolve, noise
from egd_optax.factored import explain

DIGITS, PLUS, EQUALS, TOKENS = 10, 10, 11, 12
PROMPT, ANSWER = 6, 3  # "12+34=" and "640": the last digit comes first
LENGTH = PROMPT + ANSWER
WIDTH, HEADS, LAYERS = 96, 4, 2
Params = dict[str, Any]


def init(key: jax.Array) -> Params:
    """The parameters of a transformer of two layers."""
    keys = iter(jax.random.split(key, 2 + 4 * LAYERS))

    def matrix(rows: int, columns: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) / rows**0.5

    layers = [
        {
            "qkv": matrix(WIDTH, 3 * WIDTH),
            "out": matrix(WIDTH, WIDTH),
            "up": matrix(WIDTH, 4 * WIDTH),
            "down": matrix(4 * WIDTH, WIDTH),
        }
        for _ in range(LAYERS)
    ]
    return {"embed": matrix(TOKENS, WIDTH), "places": matrix(LENGTH, WIDTH), "layers": layers}


def read(params: Params, cache: jax.Array, tokens: jax.Array, at: jax.Array) -> Any:
    """The logits behind one more token of each text, `[texts, TOKENS]`, and the cache."""
    texts = tokens.shape[0]
    hidden = params["embed"][tokens] + params["places"][at]
    for number, layer in enumerate(params["layers"]):
        query, *pair = jnp.split(jax.nn.standardize(hidden) @ layer["qkv"], 3, -1)
        pair = jnp.stack(pair).reshape(2, 1, texts, HEADS, -1)
        cache = lax.dynamic_update_slice(cache, pair[None], (number, 0, at, 0, 0, 0))
        keys, values = cache[number]
        scores = jnp.einsum("nhd,tnhd->nht", query.reshape(keys.shape[1:]), keys)
        scores = jnp.where(jnp.arange(LENGTH) <= at, scores / keys.shape[-1] ** 0.5, -jnp.inf)
        mixed = jnp.einsum("nht,tnhd->nhd", jax.nn.softmax(scores), values)
        hidden = hidden + mixed.reshape(texts, WIDTH) @ layer["out"]
        hidden = hidden + jax.nn.gelu(jax.nn.standardize(hidden) @ layer["up"]) @ layer["down"]
    return jax.nn.standardize(hidden) @ params["embed"].T, cache


def empty_cache(texts: int) -> jax.Array:
    """No keys and values yet."""
    return jnp.zeros((LAYERS, 2, LENGTH, texts, HEADS, WIDTH // HEADS))


def cross_entropy(params: Params, texts: jax.Array) -> jax.Array:
    """Of the answers, given all before them; texts `[n, LENGTH]`."""

    def step(cache: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, cache = read(params, cache, texts[:, at], at)
        return cache, logits

    _, logits = lax.scan(step, empty_cache(len(texts)), jnp.arange(LENGTH - 1))
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[PROMPT - 1 :], texts[:, PROMPT:].T
    )
    return jnp.mean(losses)


def wrong(params: Params, texts: jax.Array) -> jax.Array:
    """The part of the answers that greedy decoding gets wrong."""

    def step(carry: Any, at: jax.Array) -> tuple[Any, jax.Array]:
        cache, tokens = carry
        tokens = jnp.where(at < PROMPT, texts[:, at], tokens)
        logits, cache = read(params, cache, tokens, at)
        tokens = jnp.argmax(logits, -1)
        return (cache, tokens), tokens

    start = empty_cache(len(texts)), texts[:, 0]
    _, said = lax.scan(step, start, jnp.arange(LENGTH - 1))
    return jnp.mean(jnp.any(texts[:, PROMPT:] != said[PROMPT - 1 :].T, -1).astype(jnp.float32))


def sums(key: jax.Array, count: int) -> jax.Array:
    """Texts of random sums, `[count, LENGTH]`."""
    pair = jax.random.randint(key, (2, count), 0, 100)
    first, second, total = pair[0], pair[1], pair.sum(0)
    signs = jnp.full(count, PLUS), jnp.full(count, EQUALS)
    return jnp.stack(
        [first // 10, first % 10, signs[0], second // 10, second % 10, signs[1],
         total % 10, total // 10 % 10, total // 100], -1,
    )  # fmt: skip


def train(steps: int, evolve_every: int, seed: int, texts: int = 128) -> float:
    """The part of new sums that is wrong after so many steps."""
    tx = evolve(
        optax.adamw(optax.cosine_decay_schedule(3e-3, steps)),
        evolve_every=evolve_every,
        population_size=32,
        antithetic=True,
        sigma=0.01,
        noise=noise.low_rank(),
        accept=accept.improved(),
        execution=Execution(evaluate="auto"),
    )

    def value_fn(params: Params, batch: jax.Array) -> jax.Array:
        return wrong(params, batch)

    @functools.partial(jax.jit, static_argnames="evolve")
    def step(params: Params, state: Any, key: jax.Array, evolve: bool) -> Any:
        batch = sums(key, texts)
        grads = jax.grad(cross_entropy)(params, batch)
        updates, state = tx.update(
            grads, state, params, value_fn=value_fn, evolve=evolve, batch=batch
        )
        return optax.apply_updates(params, updates), state

    params = init(jax.random.key(seed))
    state = tx.init(params)
    for at in track(range(steps), f"cycle every {evolve_every} steps, seed {seed}"):
        due = (at + 1) % evolve_every == 0
        params, state = step(params, state, jax.random.key(seed * steps + at), due)
    return float(jax.jit(wrong)(params, sums(jax.random.key(10**6), 2048)))


def generation(way: str, population: int, texts: int) -> measure.Run:
    """A run of one cycle on exact match, without a gradient."""
    problem = models.Problem(init(jax.random.key(0)), sums(jax.random.key(1), texts), wrong)
    return cycle.cycle(
        problem, population_size=population, antithetic=True, noise=noise.low_rank(),
        accept=accept.always(), execution=Execution(evaluate=way),
    )  # fmt: skip


def main() -> None:
    """Measures, prints, and saves."""
    parser = argparse.ArgumentParser(prog="python -m examples.exact_match", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps; results are not kept")
    quick = parser.parse_args().quick
    with contextlib.suppress(OSError):  # another C library than glibc
        measure.keep_freed_memory()
    print(explain(wrong, init(jax.random.key(0)), texts=sums(jax.random.key(1), 32)))
    rows = []
    for population in (16,) if quick else (64, 256):
        runs = {way: generation(way, population, 32) for way in ("formed", "factored")}
        timings = measure.compare(runs, "formed", rounds=3 if quick else 9)
        rows += [
            {"case": "generations", "way": way, "population": population, "texts": 32, **timing}
            for way, timing in timings.items()
        ]
    for evolve_every in (10**9, 10):
        steps, seeds = (20, 1) if quick else (600, 5)
        errors = [train(steps, evolve_every, seed) for seed in range(seeds)]
        rows.append(
            {"case": "training", "evolve_every": evolve_every, "steps": steps, "wrong": errors}
        )
    for row in rows:
        print({key: value for key, value in row.items() if key not in ("seconds", "cpu_seconds")})
    if not quick:
        measure.save("exact_match", rows)


if __name__ == "__main__":
    main()
