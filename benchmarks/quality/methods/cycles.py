"""Gradient descent with evolution cycles: how such a run is planned."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.noise import KINDS
from benchmarks.quality import ledger
from benchmarks.quality.ledger import Ledger, generation_price
from benchmarks.quality.methods.gradient import Base
from benchmarks.quality.methods.method import (
    Plan,
    Rates,
    Static,
    count,
    sample,
    samples,
    scale,
    streams,
)
from benchmarks.quality.problem import Batch, Params, Problem
from egd_optax import Execution, accept, evolve
from egd_optax.accept import Accept
from egd_optax.noise import Noise

# Evaluations on the guard's data that a generation is charged for; some rules need fewer.
GUARD_EVALUATIONS = 3


@dataclasses.dataclass(frozen=True)
class Finite(Accept):
    """Takes the child if its fitness is finite."""

    takes_best = False

    def choose(
        self, key: jax.Array, parent: jax.Array, best: jax.Array, child: jax.Array, state: Any
    ) -> tuple[int, Any]:
        """Takes the child; the library refuses it if it is not finite."""
        return accept.CHILD, state


# Rules of acceptance, by the names that records have for them.
RULES: dict[str, Accept] = {
    "always": accept.always(),
    "finite": Finite(),
    "improved": accept.improved(),
    "best": accept.best(),
}

Carry = tuple[Params, optax.OptState]
T = TypeVar("T")


class Form(NamedTuple):
    """What a method fixes beforehand; the rest is drawn.

    Attributes:
        base: the optimizer that steps.
        options: arguments of `egd_optax.evolve`, from the floats, the other settings, and the
            cycles of the run; without a noise among them settings name it.
        antithetic: whether members come in pairs.
        absolute: whether `sigma` is in units of the initial parameters of all runs; else
            in those of the current ones.
        straight_through: whether gradients are those of the stand-in.
        training_batch: whether candidates see the batch of the gradient step; else a fresh
            one every generation.
        guard: samples that acceptance is judged on, 0 for those of the candidates.
        learn: makes the argument `refine` of `egd_optax.evolve`, from the problem, what to descend
            on, the floats, the other settings and the data. Each member takes `steps` gradients.
    """

    base: Base
    options: Callable[[Rates, Static, int], dict[str, Any]]
    antithetic: bool = False
    absolute: bool = False
    straight_through: bool = False
    training_batch: bool = False
    guard: int = 0
    learn: Callable[..., Any] | None = None


class Schedule(NamedTuple):
    """When a run evolves.

    Attributes:
        steps: gradient steps in all.
        evolve_every: steps between cycles.
        generations: of a cycle.
        forwards: sample-forwards in all.
        last: steps at the end that have no cycle.
    """

    steps: int
    evolve_every: int
    generations: int
    forwards: int
    last: int = 0

    @property
    def cycles(self) -> int:
        """Cycles in all."""
        return (self.steps - self.last) // self.evolve_every


def regular(problem: Problem, static: Static, budget: int, generation: int) -> Schedule:
    """A cycle every `interval` steps; `polish` percent of the budget are the base's alone."""
    interval, generations = static["interval"], static["generations"]
    prices = ledger.evolution(problem, interval, generation, generations)
    alone = static.get("polish", 0) * budget // 100
    steps = prices.steps_within(budget - alone)
    base = ledger.descent(problem)
    last = base.steps_within(budget - prices.spent(steps)) if alone else 0
    spent = prices.spent(steps) + base.spent(last)
    return Schedule(steps + last, interval, generations, spent, last)


def burst(problem: Problem, static: Static, budget: int, generation: int) -> Schedule:
    """One cycle on the last step, for a quarter of the budget."""
    prices = ledger.descent(problem)
    steps = prices.steps_within(budget - budget // 4)
    generations = ledger.within(budget // 4, generation)
    return Schedule(steps, steps, generations, prices.spent(steps) + generations * generation)


class Run(NamedTuple):
    """What a loop is made of.

    Attributes:
        rates: the settings that are floats, `sigma` in the units of the method.
        static: the others.
        timetable: when the run evolves.
        prices: what it costs.
        optimizer: maps rates, and arguments of `egd_optax.evolve` that take precedence,
            to the optimizer.
        step: takes the step of a number with an optimizer and returns what comes of it,
            and the loss before it; with `evolve` it ends with a cycle, whose members are
            evaluated on `size` samples if that is given.
        value_fn: maps the number of a step to the fitness of parameters in its cycle.
    """

    rates: Rates
    static: Static
    timetable: Schedule
    prices: Ledger
    optimizer: Callable[..., optax.GradientTransformationExtraArgs]
    step: Callable[..., tuple[Carry, jax.Array]]
    value_fn: Callable[[jax.Array], Callable[..., jax.Array]]


def in_periods(
    timetable: Schedule,
    idle: Callable[[jax.Array, T], T],
    evolving: Callable[[jax.Array, T], T],
    carry: T,
) -> T:
    """Takes all steps of a run, those on which a cycle is due with `evolving`."""

    # A period is idle steps and then one with a cycle: no conditional in the program.
    def period(carry: T, first: jax.Array) -> tuple[T, None]:
        last = first + timetable.evolve_every - 1
        return evolving(last, lax.fori_loop(first, last, idle, carry)), None

    whole = timetable.cycles * timetable.evolve_every
    starts = jnp.arange(0, whole, timetable.evolve_every)
    carry, _ = lax.scan(period, carry, starts)
    return lax.fori_loop(whole, timetable.steps, idle, carry)


def steady(run: Run, params: Params) -> Params:
    """One optimizer from the initial parameters to the last."""
    optimizer = run.optimizer(run.rates)

    def step(at: jax.Array, carry: Carry, *, evolve: bool) -> Carry:
        return run.step(at, carry, optimizer, evolve=evolve)[0]

    idle, evolving = (functools.partial(step, evolve=evolve) for evolve in (False, True))
    last, _ = in_periods(run.timetable, idle, evolving, (params, optimizer.init(params)))
    return last


def noise_of(static: Static, *, relative: bool) -> Noise:
    """The noise that settings name as the records do, of full rank where they name none."""
    return KINDS[static.get("noise", "full_rank")](relative=relative)


def rule_of(static: Static) -> Accept:
    """The rule of acceptance that settings name as the records do; without a name the best."""
    return RULES[static.get("accept", "best")]


def plan(
    problem: Problem,
    static: Static,
    budget: int,
    *,
    form: Form,
    schedule: Callable[[Problem, Static, int, int], Schedule] = regular,
    loop: Callable[[Run, Params], Params] = steady,
) -> Plan:
    """Gradient steps, some of which evolve."""
    objective = problem.straight_through if form.straight_through else problem.loss
    assert objective is not None
    size, population = samples(problem, static), static["population"]
    guard = min(form.guard, count(problem.train))
    unit = scale(problem) if form.absolute else 1.0
    generation = generation_price(
        population, size, antithetic=form.antithetic, compares=rule_of(static).compares
    )
    generation += GUARD_EVALUATIONS * guard
    if form.learn is not None:
        generation += population * static["steps"] * ledger.descent(problem).step
    timetable = schedule(problem, static, budget, generation)
    prices = ledger.evolution(problem, timetable.evolve_every, generation, timetable.generations)

    def train(key: jax.Array, rates: Rates, data: Batch) -> Params:
        keys = streams(key)

        def optimizer(rates: Rates, **options: Any) -> optax.GradientTransformationExtraArgs:
            learns = form.learn and form.learn(problem, objective, rates, static, data)
            return evolve(
                form.base(rates, timetable.steps, keys.noise),
                evolve_every=timetable.evolve_every,
                generations=timetable.generations,
                antithetic=form.antithetic,
                key=keys.noise,
                refine=learns,
                **{
                    "population_size": population,
                    "noise": noise_of(static, relative=not form.absolute),
                    "execution": Execution(candidate_batch_size=population),
                    **form.options(rates, static, timetable.cycles),
                    **options,
                },
            )

        gradient = jax.value_and_grad(objective)

        def fitness(key: jax.Array, batch: Batch, size: int = size) -> dict[str, Any]:
            def draw(generation: jax.Array, size: int) -> Batch:
                return sample(data, jax.random.fold_in(key, generation), size)

            def value_fn(params: Params, generation: jax.Array) -> jax.Array:
                seen = batch if form.training_batch else draw(generation, size)
                return problem.fitness(params, seen)

            def accept_value_fn(params: Params, generation: jax.Array) -> jax.Array:
                # The negative numbers are those of no generation.
                return problem.fitness(params, draw(-1 - generation, guard))

            judge = {"accept_value_fn": accept_value_fn} if guard else {}
            return {"value_fn": value_fn, **judge}

        def step(
            at: jax.Array,
            carry: Carry,
            optimizer: optax.GradientTransformationExtraArgs,
            *,
            evolve: bool,
            size: int = size,
        ) -> tuple[Carry, jax.Array]:
            params, state = carry
            batch = sample(data, jax.random.fold_in(keys.batches, at), problem.batch_size)
            extra = fitness(jax.random.fold_in(keys.fitness, at), batch, size) if evolve else {}
            loss, gradients = gradient(params, batch)
            updates, state = optimizer.update(gradients, state, params, evolve=evolve, **extra)
            return (optax.apply_updates(params, updates), state), loss

        def value_fn(at: jax.Array) -> Callable[..., jax.Array]:
            batch = sample(data, jax.random.fold_in(keys.batches, at), problem.batch_size)
            return fitness(jax.random.fold_in(keys.fitness, at), batch)["value_fn"]

        rates = {**rates, "sigma": unit * rates["sigma"]}
        run = Run(rates, static, timetable, prices, optimizer, step, value_fn)
        return loop(run, problem.init(keys.init))

    return Plan(timetable.forwards, train)
