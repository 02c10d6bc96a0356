"""Sigma that adapts: the standard deviation of the noise, from the outcome of each generation.

>>> import optax
>>> from egd_optax import accept, evolve, sigma
>>> tx = evolve(optax.sgd(0.1), sigma=sigma.one_fifth(0.1), accept=accept.improved())

Subclass `Sigma` for another rule.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_number, check_static_number
from egd_optax._written import Written, settle
from egd_optax.noise.outcome import Outcome

__all__ = ["Sigma", "one_fifth", "path_length"]


class Sigma:
    """A sigma that adapts: `start`, times a factor that changes from generation to generation.

    Decorate a subclass that has settings with `@dataclasses.dataclass(frozen=True)`, so that it is
    compared by value. Give it no `__call__`, which would make it a schedule.

    Attributes:
        start: sigma in the first generation, or an optax schedule of the cycle index, which the
            factor multiplies.
        compares: whether the rule needs the fitness of parent and child. `evolve` then refuses a
            rule of acceptance that does not evaluate these.
        statistic: None, or a function that maps noise of unit variance to an array like it. The
            sum of weight * statistic over the members is then `outcome.statistic`. It costs a draw
            for each member with a weight.

    Example:
        It shrinks while no generation is accepted, and starts anew with the first that is.

        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve, sigma
        >>> class Patient(sigma.Sigma):
        ...   start = 0.1
        ...   def init(self, params):
        ...     return jnp.float32(0.0)
        ...   def factor(self, state):
        ...     return 0.9**state
        ...   def adapt(self, state, outcome):
        ...     return jnp.where(outcome.accepted, 0.0, state + 1.0)
        >>> tx = evolve(optax.sgd(0.1), sigma=Patient())
        >>> tx.init(jnp.ones(3)).strategy_state.of_sigma.item()
        0.0
    """

    start: Any
    compares: bool = False
    statistic: Callable[[jax.Array], jax.Array] | None = None

    def init(self, params: optax.Params) -> Any:
        """Returns the state at the start of a run; `strategy_state.of_sigma` holds it.

        Args:
            params: the parameters in float32 or wider, with `optax.MaskedNode` for leaves that do
                not mutate.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `init`.")

    def factor(self, state: Any) -> jax.Array:
        """Returns what multiplies `start`, `[]`."""
        raise NotImplementedError(f"{type(self).__name__} must have a method `factor`.")

    def adapt(self, state: Any, outcome: Outcome) -> Any:
        """Returns the next state, after a generation."""
        raise NotImplementedError(f"{type(self).__name__} must have a method `adapt`.")


def one_fifth(start: Any, growth: float = 1.5) -> Sigma:
    """Grows after a generation whose child beats its parent, and shrinks after another one.

    It stays the same with one success in five: four failures undo one success.

    Args:
        start: sigma in the first generation, or an optax schedule of the cycle index, which the
            adapted factor multiplies.
        growth: what a success multiplies sigma by, above 1; a failure by growth ** (-1 / 4).

    Returns:
        The rule, an argument of `evolve` and `egd`. It needs the fitness of parent and child, so
        pass `accept.improved()` or `accept.best()`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.

    Cost:
        One number in the state.

    References:
        Rechenberg, `Evolutionsstrategie`, 1973; with these factors: Kern et al., `Learning
        Probability Distributions in Continuous Evolutionary Algorithms
        <https://doi.org/10.1023/B:NACO.0000023416.59689.4e>`_, 2004.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import accept, evolve, sigma
        >>> tx = evolve(optax.set_to_zero(), evolve_every=1, sigma=sigma.one_fifth(1e-3),
        ...             accept=accept.improved())
        >>> params = jnp.ones(3)
        >>> _, state = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> _, state = tx.update(params, state, params, value_fn=jnp.sum)
        >>> round(float(state.info.sigma), 6)  # the first child was better
        0.0015
    """
    return _OneFifth(start, growth)


def path_length(start: Any) -> Sigma:
    """Grows while steps go on in one direction, and shrinks while they turn back.

    Cumulative step-size adaptation. It compares the path of the last generations, in units of the
    noise, with that of random steps. It needs no fitness of the child.

    It fits `recombine.mean()`. With weights of both signs, as those of `centered_rank()`, pass
    mirrored pairs and a small step, `es_optimizer=optax.sgd(0.15)`. Otherwise sigma can grow
    without end. Do not combine it with `noise.separable()`, which adapts the same width.

    Args:
        start: sigma in the first generation, or an optax schedule of the cycle index, which the
            adapted factor multiplies.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Raises:
        TypeError: `start` is no number and no schedule.
        ValueError: `start` is negative or not finite.

    Cost:
        The path is a copy of the mutating leaves, in float32 or wider. After a generation each
        member with a weight is drawn once more, into a sum of that size.

    References:
        Hansen and Ostermeier, `Completely Derandomized Self-Adaptation in Evolution Strategies
        <https://doi.org/10.1162/106365601750190398>`_, 2001; with the constants of Hansen, `The CMA
        Evolution Strategy: A Tutorial <https://arxiv.org/abs/1604.00772>`_, 2016.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import accept, evolve, noise, sigma
        >>> tx = evolve(
        ...   optax.set_to_zero(), evolve_every=1, population_size=16, accept=accept.always(),
        ...   noise=noise.gaussian(relative=False), sigma=sigma.path_length(0.01))
        >>> params = jnp.ones(3)
        >>> state = tx.init(params)
        >>> for _ in range(20):
        ...   updates, state = tx.update(params, state, params, value_fn=jnp.sum)
        ...   params = optax.apply_updates(params, updates)
        >>> bool(state.info.sigma > 0.1)  # the way is long and straight
        True
    """
    return _PathLength(start)


def start_of(sigma: Any, cycle: jax.Array) -> Any:
    """The sigma that a cycle starts from, `[]`, before what a rule has learned."""
    start = sigma.start if isinstance(sigma, Sigma) else sigma
    return start(cycle) if callable(start) else start


@dataclasses.dataclass(frozen=True, repr=False)
class _OneFifth(Written, Sigma):
    """See `one_fifth`."""

    made_by = "sigma.one_fifth"
    compares = True

    start: Any
    growth: float

    def __post_init__(self) -> None:
        _check_start(self.start)
        growth = check_static_number("growth", self.growth, zero=False)
        if growth <= 1:
            raise ValueError(f"`growth` must be above 1, got {growth!r}: 1.5 is usual.")
        settle(self, growth=growth)

    def init(self, params: optax.Params) -> Any:
        return jnp.float32(1)

    def factor(self, state: jax.Array) -> jax.Array:
        return state

    def adapt(self, state: jax.Array, outcome: Outcome) -> jax.Array:
        success = outcome.child_fitness < outcome.fitness[0]
        return jnp.where(success, state * self.growth, state * self.growth**-0.25)


class PathState(NamedTuple):
    """The state of `path_length`.

    Attributes:
        path: the sum of the last steps in units of the noise, like the mutating leaves.
        log_factor: the logarithm of what multiplies the sigma of the start, `[]`.
    """

    path: optax.Params
    log_factor: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class _PathLength(Written, Sigma):
    """See `path_length`."""

    made_by = "sigma.path_length"

    start: Any

    def __post_init__(self) -> None:
        _check_start(self.start)

    @staticmethod
    def statistic(unit: jax.Array) -> jax.Array:
        return unit

    def init(self, params: optax.Params) -> PathState:
        return PathState(jax.tree.map(jnp.zeros_like, params), jnp.float32(0))

    def factor(self, state: PathState) -> jax.Array:
        return jnp.exp(state.log_factor)

    def adapt(self, state: PathState, outcome: Outcome) -> PathState:
        size = sum(leaf.size for leaf in jax.tree.leaves(state.path))
        effective, variance = _by_chance(outcome)
        usable = variance > 0
        variance = jnp.where(usable, variance, 1)
        rate = (effective + 2) / (size + effective + 5)
        too_large = jnp.sqrt(jnp.maximum(effective - 1, 0) / (size + 1)) - 1
        damping = 1 + 2 * jnp.maximum(too_large, 0) + rate
        scale = jnp.sqrt(rate * (2 - rate) / variance)
        path = jax.tree.map(
            lambda old, step: (1 - rate) * old + scale * step, state.path, outcome.statistic
        )
        squares = [jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(path)]
        expected = size**0.5 * (1 - 1 / (4 * size) + 1 / (21 * size**2))
        change = rate / damping * (jnp.sqrt(sum(squares)) / expected - 1)
        after = PathState(path, state.log_factor + change)
        next_state: PathState = optax.tree.where(usable, after, state)
        return next_state


def _by_chance(outcome: Outcome) -> tuple[jax.Array, jax.Array]:
    """How many draws count, and the variance of the sum of unit noise, `[]`, in a random order.

    The two of a pair can be near each other in every order that selection finds. So the weights of
    the draws do not tell it: far too large a sigma would seem to go straight on, and grow.
    """
    members = outcome.weights[1:]
    squares = jnp.sum(jnp.square(members))
    pair = members.size // outcome.draw_weights.size
    effective = jnp.square(jnp.sum(jnp.abs(members))) / jnp.where(squares > 0, squares, 1) / pair
    if pair == 1:
        return effective, squares
    apart = jnp.sum(jnp.square(members - jnp.mean(members)))
    return effective, apart * members.size / (members.size - 1)


def _check_start(start: Any) -> None:
    if not callable(start):
        check_number("start", start, zero=True)
