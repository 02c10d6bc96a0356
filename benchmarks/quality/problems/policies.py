"""Policies of simulated machines, in Gymnax. A sample is an episode, by the seed that starts it.

No loss is differentiable here: what has a gradient is what PPO makes of the rewards.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality.problem import Batch, Params, Problem
from benchmarks.quality.problems import layers

# Seeds to train on, to tune on, and to be judged on.
TRAIN, VALIDATION, TEST = 65_536, 64, 256
HIDDEN = 32
# What a policy does and remembers on an observation, with a key.
Act = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


class Task(NamedTuple):
    """A machine, and what is asked of it.

    Attributes:
        env: the name of the environment.
        length: steps of every episode; one that ends before stands still from there on.
        observations: numbers of an observation, with what each is divided by.
        actions: numbers of an action or, where one of some is chosen, how many there are.
        highest: the largest of these numbers, None where one of some is chosen.
        delayed: whether all rewards are paid out at the end of an episode.
        unit: what rewards are divided by for the value function of PPO.
    """

    env: str
    length: int
    observations: tuple[float, ...]
    actions: int
    highest: float | None
    delayed: bool
    unit: float


class Episode(NamedTuple):
    """What happened, `[length, ...]`.

    Attributes:
        observations: before every step.
        remembered: what the policy kept beside its actions.
        rewards: of every step, as they were paid out.
        going_on: whether the episode had not ended before the step.
        last: the observation after the last step.
        ended: whether it had ended by then, `[]`.
    """

    observations: jax.Array
    remembered: Any
    rewards: jax.Array
    going_on: jax.Array
    last: jax.Array
    ended: jax.Array


PENDULUM = Task("Pendulum-v1", 200, (1.0, 1.0, 4.0), 1, 2.0, delayed=False, unit=10.0)
TASKS = {
    "pendulum": PENDULUM,
    "delayed_pendulum": PENDULUM._replace(delayed=True, unit=100.0),
    "mountain_car": Task("MountainCar-v0", 200, (1.0, 0.07), 3, None, delayed=False, unit=10.0),
    "acrobot": Task(
        "Acrobot-v1", 500, (1.0, 1.0, 1.0, 1.0, 6.0, 14.0), 3, None, delayed=False, unit=10.0
    ),
}


def pendulum() -> Problem:
    """Swing up a pendulum and hold it, at little cost; 1,217 parameters.

    The budget is 600,000 steps of the environment, 3,000 episodes; the score is the mean cost of an
    episode. What a step costs is told at once.
    """
    return policy("pendulum", episodes=3_000)


def delayed_pendulum() -> Problem:
    """The same, but what an episode costs is told at its end: the fitness does not notice."""
    return policy("delayed_pendulum", episodes=3_000)


def mountain_car() -> Problem:
    """Drive an engine that is too weak up a hill, in as few steps as can be; 1,251 parameters.

    The budget is 1,500 episodes of at most 200 steps; the score is the mean number of steps, 200
    where the top is not reached. Whoever never reaches it learns nothing from the rewards.
    """
    return policy("mountain_car", episodes=1_500)


def acrobot() -> Problem:
    """Swing two links up to a height, in as few steps as can be; 1,379 parameters.

    The budget is 600 episodes of at most 500 steps; the score is the mean number of steps.
    """
    return policy("acrobot", episodes=600)


def policy(name: str, episodes: int) -> Problem:
    """A policy whose fitness is the mean of what an episode costs."""
    task = TASKS[name]

    def cost(params: Params, seeds: Batch) -> jax.Array:
        def of(seed: jax.Array) -> jax.Array:
            act = lambda observation, key: (greedy(task, params, observation), None)  # noqa: E731
            return -jnp.sum(play(task, act, seed).rewards)

        return jnp.mean(jax.vmap(of)(seeds))

    seeds = jnp.arange(TRAIN + VALIDATION + TEST, dtype=jnp.uint32)
    train, validation, test = jnp.split(seeds, (TRAIN, TRAIN + VALIDATION))
    return Problem(
        name=name,
        kind="policy",
        init=layers.perceptron(len(task.observations), HIDDEN, HIDDEN, task.actions),
        loss=cost,
        fitness=cost,
        straight_through=None,
        score=cost,
        train=train,
        validation=validation,
        test=test,
        batch_size=1,
        budget=episodes,
    )


def outputs(task: Task, params: Params, observation: jax.Array) -> jax.Array:
    """An action without noise in units of the largest, or the logits of those to choose from."""
    observation = observation / jnp.array(task.observations)
    return layers.forward(params, observation, jnp.tanh)


def greedy(task: Task, params: Params, observation: jax.Array) -> jax.Array:
    """What the policy does without noise."""
    found = outputs(task, params, observation)
    return jnp.argmax(found) if task.highest is None else found


def play(task: Task, act: Act, seed: jax.Array) -> Episode:
    """An episode, whose actions are clipped to what the machine can do."""
    env, options = _environment(task.env)
    keys = jax.random.split(jax.random.key(seed), 1 + task.length)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        observation, state, ended = carry
        chosen, remembered = act(observation, key)
        if task.highest is not None:
            chosen = task.highest * jnp.clip(chosen, -1, 1)
        *following, reward, _, _ = env.step_env(key, state, chosen, options)
        ends = env.is_terminated(following[1], options)
        following = optax.tree.where(ended, [observation, state], following)
        reward = jnp.where(ended, 0.0, reward)
        return (*following, ended | ends), (observation, remembered, reward, ~ended)

    start = (*env.reset_env(keys[0], options), jnp.bool_(False))
    (last, _, ended), (observations, remembered, rewards, going_on) = lax.scan(
        step, start, keys[1:]
    )
    if task.delayed:
        rewards = jnp.zeros_like(rewards).at[-1].set(jnp.sum(rewards))
    return Episode(observations, remembered, rewards, going_on, last, ended)


@functools.cache
def _environment(name: str) -> tuple[Any, Any]:
    import gymnax  # only where it runs: the tests do without

    # It is kept, and may be asked for first where a program is traced, with arrays of its own.
    with jax.ensure_compile_time_eval():
        return gymnax.make(name)
