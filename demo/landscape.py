"""The third story: a function with so many local minima that a gradient ends in one of them.

Levy's function of 100 variables, from random points. Its gradient is exact, and leads to the
nearest minimum. Cycles by the preset for global search look wide at first and close in the end.

Settings were chosen as for the other stories: 12 of each method, on seeds that are not shown, by
the lowest mean value at the end; see `demo.tune`.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.quality.ledger import FORWARDS_PER_GRADIENT, Ledger, generation_price
from benchmarks.quality.problems.landscapes import levy_100
from egd_optax import evolve, presets

TITLE = "Gradient stuck: Levy's function"
BUDGET = 100_000
# Below this value a point is within the basin of the global minimum, where the function is 0.
SOLVED = 0.1
RATES = (0.003, 0.006, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0)
POLISHING_RATES = (1e-3, 1e-2, 1e-1)
SIGMAS = (1.5, 3.0)
STEPS = (0.15, 0.3)


class Descent(NamedTuple):
    """A method.

    Attributes:
        learning_rate: of Adam, decays to zero along a cosine; None for no gradient.
        sigma: of the first cycle; None for no cycles.
        es_rate: how far a generation goes along the weighted sum of its members.
    """

    learning_rate: float | None
    sigma: float | None = None
    es_rate: float = 0.3

    @property
    def ledger(self) -> Ledger:
        """The prices of its steps and cycles."""
        step = 0 if self.learning_rate is None else FORWARDS_PER_GRADIENT
        if self.sigma is None:
            return Ledger(step)
        preset = presets.global_search(self.sigma, 1)
        generation = generation_price(
            preset["population_size"], 1, antithetic=True, compares=preset["accept"].compares
        )
        return Ledger(step, preset["generations"] * generation, preset["evolve_every"])

    def optimizer(self, steps: int, key: jax.Array) -> optax.GradientTransformationExtraArgs:
        """The optimizer of a run of so many steps."""
        base = optax.set_to_zero()
        if self.learning_rate is not None:
            base = optax.adam(optax.cosine_decay_schedule(self.learning_rate, steps))
        if self.sigma is None:
            return optax.with_extra_args_support(base)
        step = optax.sgd(self.es_rate)
        preset = presets.global_search(self.sigma, steps, es_optimizer=step)
        return evolve(base, **preset, key=key)


METHODS = {
    "Adam": Descent(1.0),
    "Cycles alone": Descent(None, 3.0, 0.15),
    "Adam + cycles": Descent(0.1, 3.0, 0.15),
}


class Path(NamedTuple):
    """A run.

    Attributes:
        seed: what it started from.
        forwards: what was spent until each step, in evaluations of the function.
        values: of the function behind each step.
        cycles: how many there were.
    """

    seed: int
    forwards: Sequence[int]
    values: Sequence[float]
    cycles: int


def run(method: Descent, *, seed: int, budget: int) -> Path:
    """Minimises from a random point until the evaluations are spent."""
    ledger = method.ledger
    steps = ledger.steps_within(budget)
    values = _values(method, steps, jax.random.key(seed))
    forwards = [ledger.spent(step) for step in range(1, steps + 1)]
    return Path(seed, forwards, values.tolist(), 0 if method.sigma is None else steps)


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def _values(method: Descent, steps: int, key: jax.Array) -> jax.Array:
    """The values behind each step, `[steps]`."""
    problem = levy_100()
    start_key, noise_key = jax.random.split(key)
    params = problem.init(start_key)
    optimizer = method.optimizer(steps, noise_key)

    def value_fn(params: optax.Params) -> jax.Array:
        return problem.fitness(params, problem.train)

    def step(
        carry: tuple[optax.Params, optax.OptState], _: None
    ) -> tuple[tuple[optax.Params, optax.OptState], jax.Array]:
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(value_fn)(params), state, params, value_fn=value_fn
        )
        params = optax.apply_updates(params, updates)
        return (params, state), value_fn(params)

    _, values = lax.scan(step, (params, optimizer.init(params)), length=steps)
    return jnp.asarray(values)


def grid(method: Descent) -> list[Descent]:
    """What is tried in place of a method's settings."""
    if method.sigma is None:
        return [Descent(rate) for rate in RATES]
    if method.learning_rate is None:
        sigmas, steps = (0.75, *SIGMAS, 6.0), (*STEPS, 0.6)
        return [Descent(None, *found) for found in itertools.product(sigmas, steps)]
    return [Descent(*found) for found in itertools.product(POLISHING_RATES, SIGMAS, STEPS)]
