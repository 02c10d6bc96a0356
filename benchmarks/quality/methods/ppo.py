"""Proximal policy optimization, alone and with cycles on the return.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with whole episodes, generalized advantages,
a linear learning rate and clipped gradients; actions have normal noise, or are drawn from logits
where one of some is chosen. Its gradients cost nothing here: what is counted is steps of the
environment.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods.cycles import Schedule, in_periods, noise_of
from benchmarks.quality.methods.method import (
    Method,
    Plan,
    Rates,
    Settings,
    Static,
    log_uniform,
    one_of,
    sample,
    streams,
)
from benchmarks.quality.methods.presets import slope
from benchmarks.quality.problem import Batch, Params, Problem
from benchmarks.quality.problems import layers
from benchmarks.quality.problems.policies import TASKS, Task, outputs, play
from egd_optax import Execution, evolve

CLIP, LAMBDA, VALUE, LARGEST = 0.2, 0.95, 0.5, 0.5
LOG_STD, HIDDEN = -0.5, 64
State = tuple[Params, optax.OptState]


class Transitions(NamedTuple):
    """Steps of all episodes, `[n, ...]`; those behind the end of an episode have no weight."""

    weights: jax.Array
    observations: jax.Array
    actions: jax.Array
    likelihoods: jax.Array
    advantages: jax.Array
    returns: jax.Array


def plan(problem: Problem, static: Static, budget: int, *, evolves: bool) -> Plan:
    """Iterations of PPO, some of which end with a cycle."""
    task, episodes = TASKS[problem.name], static["episodes"]
    interval = static["interval"] if evolves else 1
    cycle = static["population"] * static["samples"] if evolves else 0
    prices = Ledger(episodes, cycle, interval)
    iterations = prices.steps_within(budget)
    timetable = Schedule(iterations, interval, 1, prices.spent(iterations))
    updates = static["epochs"] * static["minibatches"]

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)
        critic = layers.perceptron(len(task.observations), HIDDEN, HIDDEN, 1)
        params = {
            "policy": problem.init(keys.init),
            "log_std": jnp.full([task.actions], LOG_STD),
            "value": critic(jax.random.fold_in(keys.init, 1)),
        }
        rate = optax.linear_schedule(rates["learning_rate"], 0.0, iterations * updates)
        base = optax.chain(optax.clip_by_global_norm(LARGEST), optax.adam(rate, eps=1e-5))
        optimizer = _evolving(base, rates, static, keys.noise) if evolves else base

        def iteration(at: jax.Array, carry: State, *, evolve: bool) -> State:
            seeds = sample(data, jax.random.fold_in(keys.batches, at), episodes)
            seen = _played(task, carry[0], seeds, rates["gamma"])
            shuffled = _minibatches(jax.random.fold_in(keys.noise, at), static, seen.returns.size)

            def update(carry: State, rows: jax.Array, **extra: Any) -> State:
                params, state = carry
                batch = jax.tree.map(lambda leaf: leaf[rows], seen)
                slope = jax.grad(_loss)(params, task, batch, rates["entropy"])
                updates, state = optimizer.update(slope, state, params, **extra)
                return optax.apply_updates(params, updates), state

            if not evolves:
                return lax.scan(lambda c, rows: (update(c, rows), None), carry, shuffled)[0]
            idle = functools.partial(update, evolve=False)
            carry, _ = lax.scan(lambda c, rows: (idle(c, rows), None), carry, shuffled[:-1])
            if not evolve:
                return idle(carry, shuffled[-1])
            key = jax.random.fold_in(keys.fitness, at)

            def value_fn(params: Params) -> jax.Array:
                return problem.fitness(params["policy"], sample(data, key, static["samples"]))

            return update(carry, shuffled[-1], evolve=True, value_fn=value_fn)

        idle, evolving = (functools.partial(iteration, evolve=flag) for flag in (False, True))
        start = params, optimizer.init(params)
        if evolves:
            return in_periods(timetable, idle, evolving, start)[0]["policy"]
        return lax.fori_loop(0, iterations, idle, start)[0]["policy"]

    return Plan(timetable.forwards, train)


def _evolving(
    base: optax.GradientTransformation, rates: Rates, static: Static, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The metric preset around PPO's optimizer; the policy alone mutates."""
    return evolve(
        base,
        evolve_every=static["interval"],
        population_size=static["population"],
        noise=noise_of(static, relative=True),
        antithetic=True,
        mutable={"policy": True, "log_std": False, "value": False},
        execution=Execution(candidate_batch_size=static["population"]),
        key=key,
        **slope(rates, {"decay": False, "accept": "always"}, total=0),
    )


def _played(task: Task, params: Params, seeds: jax.Array, gamma: float) -> Transitions:
    """Episodes with drawn actions, and how much better than expected each step was."""

    def act(observation: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        found = outputs(task, params["policy"], observation)
        if task.highest is None:
            chosen = jax.random.categorical(key, found)
        else:
            chosen = found + jnp.exp(params["log_std"]) * jax.random.normal(key, found.shape)
        return chosen, (chosen, _log_likelihood(task, params, found, chosen))

    seen = jax.vmap(lambda seed: play(task, act, seed))(seeds)
    rewards = seen.rewards / task.unit
    values = _value(task, params, seen.observations)
    # What follows an episode that was cut off counts, but not where it ended or all was paid out.
    after = jnp.zeros_like(values[:, 0]) if task.delayed else _value(task, params, seen.last)
    following = jnp.concatenate([values[:, 1:], after[:, None]], axis=1)
    goes_on = jnp.concatenate([seen.going_on[:, 1:], ~seen.ended[:, None]], axis=1)
    errors = seen.going_on * (rewards + gamma * goes_on * following - values)

    def back(sum_: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        sum_ = error + gamma * LAMBDA * sum_
        return sum_, sum_

    _, advantages = lax.scan(back, jnp.zeros_like(errors[:, 0]), errors.T, reverse=True)
    chosen, likelihoods = seen.remembered
    weights, returns = seen.going_on.astype(values.dtype), advantages.T + values
    steps = Transitions(weights, seen.observations, chosen, likelihoods, advantages.T, returns)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps)


def _minibatches(key: jax.Array, static: Static, steps: int) -> jax.Array:
    """Numbers of steps, in a new order every epoch, `[epochs * minibatches, size]`."""
    keys = jax.random.split(key, static["epochs"])
    orders = jax.vmap(lambda key: jax.random.permutation(key, steps))(keys)
    return orders.reshape(static["epochs"] * static["minibatches"], -1)


def _loss(params: Params, task: Task, batch: Transitions, entropy: float) -> jax.Array:
    weights = batch.weights / jnp.maximum(jnp.sum(batch.weights), 1)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(weights * values)

    found = outputs(task, params["policy"], batch.observations)
    likelihoods = _log_likelihood(task, params, found, batch.actions)
    ratio = jnp.exp(likelihoods - batch.likelihoods)
    advantages = batch.advantages - mean(batch.advantages)
    advantages /= jnp.sqrt(mean(advantages**2)) + 1e-8
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages)
    error = mean((_value(task, params, batch.observations) - batch.returns) ** 2)
    return -mean(gain) + VALUE * error - entropy * mean(_entropy(task, params, found))


def _value(task: Task, params: Params, observations: jax.Array) -> jax.Array:
    scaled = observations / jnp.array(task.observations)
    return layers.forward(params["value"], scaled, jnp.tanh)[..., 0]


def _log_likelihood(task: Task, params: Params, found: jax.Array, chosen: jax.Array) -> jax.Array:
    """Of actions, under normal noise but for a constant."""
    if task.highest is None:
        of_all = jax.nn.log_softmax(found)
        return jnp.take_along_axis(of_all, chosen[..., None], axis=-1)[..., 0]
    deviation = (chosen - found) / jnp.exp(params["log_std"])
    return -jnp.sum(deviation**2 / 2 + params["log_std"], axis=-1)


def _entropy(task: Task, params: Params, found: jax.Array) -> jax.Array:
    """Of what is drawn, but for a constant; of normal noise it is the same everywhere."""
    if task.highest is None:
        return -jnp.sum(jax.nn.softmax(found) * jax.nn.log_softmax(found), axis=-1)
    return jnp.broadcast_to(jnp.sum(params["log_std"]), found.shape[:-1])


def settings(rng: np.random.Generator) -> Settings:
    """What is tuned of PPO."""
    return {
        "learning_rate": log_uniform(rng, 1e-4, 1e-2),
        "episodes": one_of(rng, 8, 16),
        "epochs": one_of(rng, 4, 10),
        "minibatches": 4,
        "gamma": one_of(rng, 0.95, 0.99),
        "entropy": one_of(rng, 0.0, 0.003),
    }


def evolving_settings(rng: np.random.Generator) -> Settings:
    """PPO's, drawn alike, and those of cycles."""
    return {
        **settings(rng),
        "sigma": log_uniform(rng, 0.02, 0.2),
        "recombine_step": log_uniform(rng, 0.3, 3.0),
        "population": 16,
        "samples": 4,
        "interval": one_of(rng, 5, 20),
        "noise": "low_rank",
    }


def _method(name: str, drawn: Callable[..., Settings], *, evolves: bool) -> Method:
    return Method(name, drawn, functools.partial(plan, evolves=evolves))


METHODS = (
    _method("ppo", settings, evolves=False),
    _method("metric_on_ppo", evolving_settings, evolves=True),
)
