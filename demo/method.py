"""The methods: SGD or Adam, on plain or straight-through gradients, and EGD around either."""

from typing import Any, NamedTuple

import optax

from benchmarks.quality.ledger import FORWARDS_PER_GRADIENT, Ledger, generation_price
from egd_optax import evolve
from egd_optax.accept import Accept
from egd_optax.noise import Noise, gaussian
from egd_optax.recombine import Recombine

MOMENTUM = 0.9


class Cycles(NamedTuple):
    """How EGD evolves; see the arguments of `egd_optax.evolve`.

    Attributes:
        fitness_size: training images, drawn anew for each cycle, that a member is
            evaluated on.
        es_rate: how far a cycle goes along the weighted sum of its members.
    """

    fitness_size: int
    evolve_every: int
    population_size: int
    sigma: float
    accept: Accept
    recombine: Recombine
    es_rate: float = 1.0
    antithetic: bool = False
    noise: Noise = gaussian()

    def options(self) -> dict[str, Any]:
        """The arguments of `egd_optax.evolve`."""
        options = self._asdict()
        del options["fitness_size"]
        if (rate := options.pop("es_rate")) != 1.0:
            options["es_optimizer"] = optax.sgd(rate)
        return options


class Method(NamedTuple):
    """A base optimizer, or with `cycles` EGD around it.

    Attributes:
        base: "sgd", which has momentum, or "adam".
        learning_rate: decays to zero along a cosine.
        straight_through: whether the gradient is that of the deployed parameters, with
            their rounding taken for the identity; else that of the parameters.
    """

    base: str
    learning_rate: float
    batch_size: int
    straight_through: bool = False
    cycles: Cycles | None = None

    @property
    def ledger(self) -> Ledger:
        """The prices of its steps and cycles."""
        step = FORWARDS_PER_GRADIENT * self.batch_size
        if self.cycles is None:
            return Ledger(step)
        cycle = generation_price(
            self.cycles.population_size,
            self.cycles.fitness_size,
            antithetic=self.cycles.antithetic,
            compares=self.cycles.accept.compares,
        )
        return Ledger(step, cycle, self.cycles.evolve_every)

    def optimizer(self, steps: int, key: Any = 0) -> optax.GradientTransformationExtraArgs:
        """The optimizer of a run of `steps` steps; `key` matters to `init` alone."""
        rate = optax.cosine_decay_schedule(self.learning_rate, max(steps, 1))
        base = optax.adam(rate) if self.base == "adam" else optax.sgd(rate, MOMENTUM)
        if self.cycles is None:
            return optax.with_extra_args_support(base)
        return evolve(base, **self.cycles.options(), key=key)
