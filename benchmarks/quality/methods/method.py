"""What a method is: a space to draw settings from, and a plan of a run with such settings."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.problem import Batch, Params, Problem

Settings = dict[str, Any]
Static = Mapping[str, Any]
Rates = Mapping[str, jax.typing.ArrayLike]
Train = Callable[[jax.Array, Rates, Batch], Params]


class Plan(NamedTuple):
    """A run that fits a budget.

    Attributes:
        forwards: sample-forwards that it spends.
        train: maps a key, the settings that are floats, and the data to the last
            parameters; to be compiled as a whole.
    """

    forwards: int
    train: Train


class Method(NamedTuple):
    """A way to solve problems.

    Attributes:
        name: a short identifier, also the name of its result files.
        settings: draws settings. Floats are traced; anything else shapes the program,
            and comes from a short list since every value of it is compiled anew.
        plan: maps a problem, the settings that are no floats, and a budget to a `Plan`.
        applies: whether the method can run on a problem.
        data: what a run is given of a problem.
        settings_of: the methods whose settings it takes over; if none it tunes its own.
        changed: what becomes of settings that it takes over, given those of each of them.
        tuned_behind: whether it tunes its own settings behind theirs. `changed` then gets what was
            drawn before those of each of them.
        budget: sample-forwards that it may spend, over those of the others.
        past_edges: whether tuning goes on where the best of what was drawn lies at an edge.
    """

    name: str
    settings: Callable[[np.random.Generator], Settings]
    plan: Callable[[Problem, Static, int], Plan]
    applies: Callable[[Problem], bool] = lambda problem: True
    data: Callable[[Problem], Batch] = lambda problem: problem.train
    settings_of: tuple[str, ...] = ()
    changed: Callable[..., Settings] = lambda settings: settings
    tuned_behind: bool = False
    budget: float = 1.0
    past_edges: bool = False

    @property
    def tunes(self) -> bool:
        """Whether settings are tried, and not all taken over."""
        return not self.settings_of or self.tuned_behind


class Streams(NamedTuple):
    """The keys of a run, from its seed alone: runs of all methods start alike.

    Attributes:
        init: of the initial parameters.
        batches: of the batches of gradient steps, folded with the step.
        noise: of what the method itself draws.
        fitness: of the batches that candidates are evaluated on.
    """

    init: jax.Array
    batches: jax.Array
    noise: jax.Array
    fitness: jax.Array


class Trainer:
    """Runs a method on a problem; compiles once for all settings that differ in floats only."""

    def __init__(
        self,
        method: Method,
        problem: Problem,
        budget: int,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Compiles nothing yet."""
        self._method, self._problem, self._budget = method, problem, budget
        self._data = method.data(problem)
        self._compiler_options = dict(compiler_options or {})
        self._programs: dict[str, Train] = {}

    def __call__(self, settings: Settings, seed: int) -> Params:
        """The last parameters of a run, in one call of a compiled program."""
        program = self.prepare(settings)
        return program(jax.random.key(seed), split(settings)[0], self._data)

    def prepare(self, settings: Settings) -> Train:
        """The program for some settings, compiled."""
        rates, static = split(settings)
        name = repr(sorted(static.items()))
        if name not in self._programs:
            train = jax.jit(self._plan(static).train)
            lowered = train.lower(jax.random.key(0), rates, self._data)
            self._programs[name] = lowered.compile(self._compiler_options)
        return self._programs[name]

    def forwards(self, settings: Settings) -> int:
        """Sample-forwards of a run."""
        return self._plan(split(settings)[1]).forwards

    def _plan(self, static: Static) -> Plan:
        return self._method.plan(self._problem, static, self._budget)


def split(settings: Settings) -> tuple[Settings, Settings]:
    """The settings that are traced, and those that shape the program."""
    rates = {name: value for name, value in settings.items() if isinstance(value, float)}
    return rates, {name: value for name, value in settings.items() if name not in rates}


def streams(key: jax.Array) -> Streams:
    """Splits the key of a run."""
    return Streams(*jax.random.split(key, 4))


def sample(data: Batch, key: jax.Array, size: int) -> Batch:
    """Draws `size` samples with replacement."""
    rows = jax.random.randint(key, (size,), 0, count(data))
    return jax.tree.map(lambda leaf: leaf[rows], data)


def count(data: Batch) -> int:
    """How many samples there are."""
    return int(jax.tree.leaves(data)[0].shape[0])


def samples(problem: Problem, static: Static) -> int:
    """Samples that a candidate is evaluated on; no more than there are to train on."""
    wanted: int = static.get("samples", problem.batch_size)
    return min(wanted, count(problem.train))


def scale(problem: Problem) -> float:
    """Root mean square of initial parameters: the unit of noise that is not relative."""
    keys = jax.random.split(jax.random.key(0), 16)
    leaves = jax.tree.leaves(jax.vmap(problem.init)(keys))
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in leaves)
    return max(float(np.sqrt(squares / sum(leaf.size for leaf in leaves))), 1e-3)


def cosine(rates: Rates, steps: int) -> optax.Schedule:
    """The learning rate, decaying to zero over the run."""
    return optax.cosine_decay_schedule(rates["learning_rate"], max(steps, 1))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a float whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def one_of(rng: np.random.Generator, *options: Any) -> Any:
    """Draws one of some options."""
    return options[int(rng.integers(len(options)))]
