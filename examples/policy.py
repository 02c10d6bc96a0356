"""A policy that balances a pole in Gymnax, evolved with members that are never formed.

    python -m pip install gymnax six
    python -m examples.policy

The fitness is the negative mean return of a few episodes, without a gradient; the base optimizer
does nothing. The last lines say how many generations a second there are with members that are
formed, one by one and all at once, and with members that are not.
"""

import argparse
from collections.abc import Callable
import contextlib
import importlib.metadata
from typing import Any

import gymnax
import jax
from jax import lax
import jax.numpy as jnp
import optax
from rich.progress import track

from benchmarks import measure
from egd_optax import Execution, accept, evolve, noise, recombine
from egd_optax.factored import explain

STEPS, WIDTH = 200, 64
ENV, ENV_PARAMS = gymnax.make("CartPole-v1")
Params = list[dict[str, jax.Array]]


def init(key: jax.Array) -> Params:
    """The parameters of a policy of two hidden layers."""
    sides = (4, WIDTH, WIDTH, 2)
    return [
        {"w": jax.random.normal(key, pair) / pair[0] ** 0.5, "b": jnp.zeros(pair[1])}
        for key, *pair in zip(jax.random.split(key, 3), sides, sides[1:], strict=False)
    ]


def act(params: Params, observation: jax.Array) -> jax.Array:
    """The action for an observation."""
    *hidden, last = params
    for layer in hidden:
        observation = jnp.tanh(observation @ layer["w"] + layer["b"])
    return jnp.argmax(observation @ last["w"] + last["b"])


def episode(
    params: Any, key: jax.Array, act: Callable[..., jax.Array] = act, length: int = STEPS
) -> jax.Array:
    """The steps before the pole first falls, at most so many."""

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        observation, state, upright = carry
        action = act(params, observation)
        observation, state, reward, *ended, _ = ENV.step(key, state, action, ENV_PARAMS)
        earned = reward * upright
        for end in ended:
            upright = upright * (1.0 - end)
        return (observation, state, upright), earned

    start, steps = jax.random.split(key)
    observation, state = ENV.reset(start, ENV_PARAMS)
    carry = observation, state, jnp.float32(1)
    _, earned = lax.scan(step, carry, jax.random.split(steps, length))
    return jnp.sum(earned)


def negative_return(params: Params, key: jax.Array, episodes: int = 4) -> jax.Array:
    """The fitness: the same episodes for all members of a cycle."""
    keys = jax.random.split(key, episodes)
    return -jnp.mean(jax.vmap(episode, (None, 0))(params, keys))


def optimizer(population: int, execution: Execution) -> optax.GradientTransformationExtraArgs:
    """Evolution alone."""
    return evolve(
        optax.set_to_zero(), evolve_every=1, population_size=population, antithetic=True, sigma=0.1,
        noise=noise.low_rank(), recombine=recombine.centered_rank(), accept=accept.always(),
        execution=execution,
    )  # fmt: skip


def step_of(tx: optax.GradientTransformationExtraArgs) -> Any:
    """One generation."""

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array) -> Any:
        updates, state = tx.update(None, state, params, value_fn=negative_return, key=key)
        return optax.apply_updates(params, updates), state

    return step


def generation(execution: Execution, population: int) -> measure.Run:
    """A run of one generation."""
    tx, params = optimizer(population, execution), init(jax.random.key(0))
    step, state = step_of(tx), tx.init(params)
    return lambda: step(params, state, jax.random.key(1))


def train(population: int, generations: int, seed: int) -> list[float]:
    """The mean return of 64 new episodes, before and after."""
    tx, params = optimizer(population, Execution(evaluate="auto")), init(jax.random.key(seed))
    step, state = step_of(tx), tx.init(params)
    judge = jax.jit(lambda params: -negative_return(params, jax.random.key(99), 64))
    before = float(judge(params))
    for at in track(range(generations), f"population {population}, seed {seed}"):
        params, state = step(params, state, jax.random.key(seed * generations + at))
    return [before, float(judge(params))]


def main() -> None:
    """Measures, prints, and saves."""
    parser = argparse.ArgumentParser(prog="python -m examples.policy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps; results are not kept")
    quick = parser.parse_args().quick
    with contextlib.suppress(OSError):  # another C library than glibc
        measure.keep_freed_memory()
    print(explain(negative_return, init(jax.random.key(0)), key=jax.random.key(0)))
    rows = []
    for population in (16,) if quick else (64, 256):
        runs = {
            "formed": generation(Execution(evaluate="formed"), population),
            "formed, all at once": generation(
                Execution(evaluate="formed", candidate_batch_size=population), population
            ),
            "factored": generation(Execution(evaluate="factored"), population),
        }
        timings = measure.compare(runs, "formed", rounds=3 if quick else 11)
        rows += [
            {"case": "generations", "way": way, "population": population, **timing}
            for way, timing in timings.items()
        ]
    generations, seeds = (2, 1) if quick else (60, 5)
    returns = [train(64, generations, seed) for seed in range(seeds)]
    rows.append({"case": "training", "generations": generations, "returns": returns})
    for row in rows:
        print({key: value for key, value in row.items() if key not in ("seconds", "cpu_seconds")})
    if not quick:
        measure.save("policy", rows, gymnax=importlib.metadata.version("gymnax"))


if __name__ == "__main__":
    main()
