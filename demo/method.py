"""The methods: SGD, SGD with straight-through gradients, and EGD."""

from typing import Any, NamedTuple

import optax

from demo.ledger import FORWARDS_PER_GRADIENT, Ledger
from egd_optax import egd


class Cycles(NamedTuple):
    """How EGD evolves; see the arguments of `egd_optax.evolve`.

    Attributes:
        fitness_size: training images, drawn anew for each cycle, that a member is
            evaluated on.
    """

    evolve_every: int
    population_size: int
    elite_fraction: float
    sigma: float
    accept: str
    fitness_size: int


class Method(NamedTuple):
    """SGD, or with `cycles` EGD; the learning rate decays to zero along a cosine.

    Attributes:
        straight_through: whether the gradient is that of the deployed parameters, with
            their rounding taken for the identity; else that of the parameters.
    """

    learning_rate: float
    weight_decay: float
    batch_size: int
    momentum: float = 0.9
    straight_through: bool = False
    cycles: Cycles | None = None

    @property
    def ledger(self) -> Ledger:
        """The prices of its steps and cycles."""
        step = FORWARDS_PER_GRADIENT * self.batch_size
        if self.cycles is None:
            return Ledger(step)
        # The recombined child is evaluated as well.
        cycle = (self.cycles.population_size + 1) * self.cycles.fitness_size
        return Ledger(step, cycle, self.cycles.evolve_every)

    def optimizer(self, steps: int, key: Any = 0) -> optax.GradientTransformationExtraArgs:
        """The optimizer of a run of `steps` steps; `key` matters to `init` alone."""
        rate = optax.cosine_decay_schedule(self.learning_rate, max(steps, 1))
        if self.cycles is None:
            decay = optax.add_decayed_weights(self.weight_decay)
            return optax.with_extra_args_support(optax.chain(decay, optax.sgd(rate, self.momentum)))
        settings = self.cycles._asdict()
        del settings["fitness_size"]
        return egd(
            rate,
            self.momentum,
            weight_decay=self.weight_decay,
            key=key,
            **settings,
        )
