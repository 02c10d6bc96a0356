"""The settings of a cycle, and the functions that it selects by: plain data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from egd_optax.accept import Accept
from egd_optax.core.auxiliary import Auxiliary
from egd_optax.execution import Execution
from egd_optax.noise.interface import Noise
from egd_optax.recombine import Recombine
from egd_optax.sigma import Sigma

# The default of `es_optimizer`. It is known by identity, and is None in a checked `CycleSpec`: the
# child is then formed in the memory of the weighted sum. Any other optimizer needs a gradient and
# updates, too.
STRAIGHT = optax.sgd(1.0)


class NoiseAndSigma(NamedTuple):
    """The state of `noise`, and that of a `sigma` that adapts.

    Attributes:
        of_noise: of the noise.
        of_sigma: of sigma.
    """

    of_noise: Any
    of_sigma: Any


class StrategyState(NamedTuple):
    """The state of the parts of a cycle that keep something from one cycle to the next.

    Attributes:
        noise: of `noise`; with a `sigma` that adapts `NoiseAndSigma`, the states of both.
        es_optimizer: of `es_optimizer`, for the mutating leaves, in float32 or wider. It belongs
            to the last child that was taken.
        accept: of `accept`, as of the last generation.
        residual: a pytree like the integer leaves that mutate. It has the fraction that rounding
            left of their child, int8, in units of 1/256 of a step. Empty if there are none.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> tx = evolve(optax.sgd(0.1), es_optimizer=optax.sgd(0.5, momentum=0.9))
        >>> state = tx.init(jnp.ones(3))
        >>> state.strategy_state.es_optimizer[0].trace.shape
        (3,)
    """

    noise: Any = ()
    es_optimizer: optax.OptState = ()
    accept: Any = ()
    residual: Any = ()

    @property
    def of_noise(self) -> Any:
        """The state of `noise` alone."""
        return self.noise.of_noise if isinstance(self.noise, NoiseAndSigma) else self.noise

    @property
    def of_sigma(self) -> Any:
        """The state of a `sigma` that adapts; empty if it is another one."""
        return self.noise.of_sigma if isinstance(self.noise, NoiseAndSigma) else ()


class CycleSpec(NamedTuple):
    """The settings of a cycle; see the arguments of `egd_optax.evolve`."""

    population_size: int
    generations: int
    sigma: jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike] | Sigma
    noise: Noise
    antithetic: bool
    recombine: Recombine
    es_optimizer: optax.GradientTransformation | None
    accept: Accept
    mutable: object
    execution: Execution
    aux: Auxiliary = None
    bounds: Any = None
    refine: Any = None

    @property
    def member_count(self) -> int:
        """How many members a generation has; the parent counts, in addition to mirrored pairs."""
        return self.population_size + self.antithetic

    @property
    def pair(self) -> int:
        """How many members one draw makes."""
        return 1 + self.antithetic

    @property
    def support(self) -> int | None:
        """How many members can recombine, the best; None if any member can and none is kept.

        Members that learned are kept, even if these are all: to draw one again costs its steps.
        """
        support = self.recombine.support(self.population_size)
        if support is None and self.refine is not None:
            support = self.member_count - self.skips_parent
        return None if support is None else int(support)

    @property
    def skips_parent(self) -> bool:
        """Whether the parent is not evaluated: no rule asks for it, and no pair includes it."""
        return self.antithetic and not self.accept.compares


class Mutating(NamedTuple):
    """The leaves that mutate; static.

    Attributes:
        positions: of these leaves among all.
        still: whether all updates of the base are zeros. A cycle need not hold them then.
    """

    positions: tuple[int, ...]
    still: bool


class Objectives(NamedTuple):
    """The functions that a cycle selects by, and their arguments.

    Attributes:
        value_fn: the fitness of parameters.
        accept_value_fn: the fitness that compares parent, best member and child. None for
            `value_fn`.
        extra_args: extra arguments of `update`; each function gets those that it names.
        base_state: the state of the base after the step, for the argument `base_state`.
        generation: its index in the cycle, int32 `[]`, for the argument `generation`; None before
            the first one.
    """

    value_fn: Callable[..., Any]
    accept_value_fn: Callable[..., Any] | None
    extra_args: Mapping[str, Any]
    base_state: Any = None
    generation: jax.Array | None = None
