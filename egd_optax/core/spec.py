"""What a cycle does, and what it selects on: plain data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from egd_optax.accept import Accept
from egd_optax.core.auxiliary import Auxiliary
from egd_optax.execution import Execution
from egd_optax.noise import Noise
from egd_optax.recombine import Recombine


class CycleSpec(NamedTuple):
    """What a cycle does; see the arguments of `egd_optax.evolve`."""

    population_size: int
    generations: int
    sigma: jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]
    noise: Noise
    antithetic: bool
    recombine: Recombine
    accept: Accept
    mutable: object
    execution: Execution
    es_optimizer: optax.GradientTransformationExtraArgs | None
    aux: Auxiliary = None

    @property
    def member_count(self) -> int:
        """The members of a generation, the parent included: mirrored pairs come beside it."""
        return self.population_size + self.antithetic

    @property
    def pair(self) -> int:
        """How many members one draw makes."""
        return 1 + self.antithetic

    @property
    def support(self) -> int | None:
        """How many members can recombine, the best; None if any member can."""
        support = self.recombine.support(self.population_size)
        return None if support is None else int(support)

    @property
    def skips_parent(self) -> bool:
        """Whether the parent is not evaluated: no rule asks for it, and no pair includes it."""
        return self.antithetic and not self.accept.evaluates_parent


class Objectives(NamedTuple):
    """What a cycle selects on.

    Attributes:
        value_fn: the fitness of parameters.
        accept_value_fn: the fitness by which parent, best member and child are compared, or None
            for `value_fn`.
        extra_args: extra arguments of `update`; each function gets those that it names.
        base_state: the state of the base after the step, for the argument `base_state`.
    """

    value_fn: Callable[..., Any]
    accept_value_fn: Callable[..., Any] | None
    extra_args: Mapping[str, Any]
    base_state: Any = None
