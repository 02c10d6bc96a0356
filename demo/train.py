"""Trains one method on one story from one seed, until its sample-forwards are spent."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality.digits import Digits, Split
from benchmarks.quality.ternary import straight_through
from demo import network
from demo.method import Method
from demo.network import Params, Score
from egd_optax import EvolveState, is_due


class Checkpoint(NamedTuple):
    """Parameters on the way, as deployed, and how they do on the validation images."""

    forwards: int
    params: Params
    validation: Score


class Run(NamedTuple):
    """What came out of a run.

    Attributes:
        seed: what the run started from.
        checkpoints: in order, the last at the end of the run.
        best: the checkpoint with the lowest validation error, ties to the lower loss.
        test: how `best` does on the test images.
        forwards: sample-forwards spent, validation not counted.
        cycles: for each cycle in order, sample-forwards spent by then and whether the
            parameters left the parent.
    """

    seed: int
    checkpoints: list[Checkpoint]
    best: Checkpoint
    test: Score
    forwards: int
    cycles: list[tuple[int, bool]]


class Carry(NamedTuple):
    """What a run carries from step to step.

    Attributes:
        accepted: bool `[steps + 1]`, whether the cycle on that step was accepted.
    """

    params: Params
    optimizer_state: optax.OptState
    accepted: jax.Array


def run(
    method: Method,
    deploy: Callable[[Params], Params],
    data: Digits,
    *,
    seed: int,
    budget: int,
    checks: int,
    on_check: Callable[[], None] = lambda: None,
) -> Run:
    """Trains, and looks at the validation images at equal distances in sample-forwards.

    Args:
        method: what trains.
        deploy: what the parameters become before they are used. Every score and the
            fitness of EGD are those of deployed parameters; gradients are not, unless
            the method is straight-through.
        data: the digits.
        seed: of the initial parameters, the batches and the noise.
        budget: sample-forwards that training may spend; validation is not counted.
        checks: how often to validate.
        on_check: called after each validation.

    Returns:
        The `Run`.
    """
    total = method.ledger.steps_within(budget)
    batch_key, init_key, noise_key = jax.random.split(jax.random.key(seed), 3)
    params = network.init(init_key)
    optimizer_state = method.optimizer(total, noise_key).init(params)
    carry = Carry(params, optimizer_state, jnp.zeros([total + 1], bool))
    steps, checkpoints = 0, []
    for check in range(1, checks + 1):
        end = method.ledger.steps_within(budget * check // checks)
        carry = train(method, deploy, data.train, batch_key, carry, steps, end)
        steps = end
        deployed, validation = validate(deploy, carry.params, data.validation)
        checkpoints.append(Checkpoint(method.ledger.spent(steps), deployed, validation))
        on_check()
    best = min(checkpoints, key=lambda at: (float(at.validation.error), float(at.validation.loss)))
    return Run(
        seed=seed,
        checkpoints=checkpoints,
        best=best,
        test=network.score(best.params, data.test),
        forwards=method.ledger.spent(steps),
        cycles=cycles_of(method, carry),
    )


@functools.partial(jax.jit, static_argnames=("method", "deploy"))
def train(
    method: Method,
    deploy: Callable[[Params], Params],
    split: Split,
    key: jax.Array,
    carry: Carry,
    first: jax.typing.ArrayLike,
    end: jax.typing.ArrayLike,
) -> Carry:
    """Takes the steps after `first` up to and including `end`, counted from 1."""
    optimizer = method.optimizer(carry.accepted.size - 1)
    fitness_size = method.cycles.fitness_size if method.cycles else 0

    def batch_loss(params: Params, batch: Split) -> jax.Array:
        if method.straight_through:
            params = straight_through(deploy, params)
        return network.loss(params, batch)

    def step(count: jax.Array, carry: Carry) -> Carry:
        batch_key, fitness_key = jax.random.split(jax.random.fold_in(key, count))
        batch = sample(split, batch_key, method.batch_size)
        fitness_batch = sample(split, fitness_key, fitness_size)
        params, state, accepted = carry
        updates, state = optimizer.update(
            jax.grad(batch_loss)(params, batch),
            state,
            params,
            value_fn=lambda member: network.loss(deploy(member), fitness_batch),
        )
        if isinstance(state, EvolveState):
            accepted = accepted.at[count].set(state.info.accepted)
        return Carry(optax.apply_updates(params, updates), state, accepted)

    return lax.fori_loop(first + 1, end + 1, step, carry)


def sample(split: Split, key: jax.Array, size: int) -> Split:
    """Draws `size` images with replacement."""
    rows = jax.random.randint(key, (size,), 0, len(split.labels))
    return Split(split.images[rows], split.labels[rows])


@functools.partial(jax.jit, static_argnames="deploy")
def validate(
    deploy: Callable[[Params], Params], params: Params, split: Split
) -> tuple[Params, Score]:
    """The parameters as deployed, and how they do on `split`."""
    deployed = deploy(params)
    return deployed, network.score(deployed, split)


def cycles_of(method: Method, carry: Carry) -> list[tuple[int, bool]]:
    """Sample-forwards spent after each cycle, and whether the cycle was accepted."""
    if method.cycles is None:
        return []
    steps = range(1, carry.accepted.size)
    due = [step for step in steps if is_due(step, method.cycles.evolve_every)]
    accepted = carry.accepted.tolist()
    return [(method.ledger.spent(step), accepted[step]) for step in due]
