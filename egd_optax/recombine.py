"""Recombination: the weight of each member in the child, from the fitness of all.

>>> from egd_optax import egd, recombine
>>> tx = egd(0.1, recombine=recombine.softmax(temperature=0.1))

The child is parent + sum of weight * (member - parent), unless another `es_optimizer` steps along
that sum. Your own weighting is a function from the fitness of all members, `[n]`, to their weights,
`[n]`:

>>> import jax.numpy as jnp
>>> def above_average(fitness):
...   gain = jnp.maximum(jnp.mean(fitness) - fitness, 0)
...   return gain / jnp.maximum(jnp.sum(gain), 1e-9)
>>> tx = egd(0.1, recombine=recombine.member_weights(above_average))
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax._checks import (
    check_fraction,
    check_function,
    check_operator,
    check_static_number,
)
from egd_optax._written import Written, settle

__all__ = [
    "Recombine",
    "centered_rank",
    "elite_weights",
    "mean",
    "member_weights",
    "shuffled",
    "softmax",
]


class Recombine:
    """A rule that weighs the members; subclass it if `elite_weights` cannot express yours.

    Decorate a subclass that has settings with `@dataclasses.dataclass(frozen=True)`, so that it
    is compared by value. Give it no `__call__`: `optax.inject_hyperparams` would take it for a
    schedule.

    Example:
        The best and the second best, weighed 2 to 1.

        >>> import jax.numpy as jnp
        >>> from egd_optax import egd, recombine
        >>> class BestTwo(recombine.Recombine):
        ...   def support(self, population_size):
        ...     return 2
        ...   def weights(self, fitness, support):
        ...     rank = jnp.argsort(jnp.argsort(fitness))
        ...     return jnp.where(rank == 0, 2 / 3, jnp.where(rank == 1, 1 / 3, 0))
        >>> tx = egd(0.1, recombine=BestTwo())
    """

    def support(self, population_size: int) -> int | None:
        """How many members can weigh something, known when the step is traced.

        Returns:
            A Python int k for the k best, which are kept while the members are scored. None for
            any member. No member is then kept, and all that get a weight are drawn again.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `support`.")

    def reads(self, aux: Any) -> Any:
        """The numbers that `weights` reads of each member, besides its fitness; by default None.

        Args:
            aux: of one member, like the argument `aux` of `evolve`.

        Returns:
            A pytree of arrays, kept for all members, so return few numbers. With None `weights` is
            called without them.

        Example:
            The weights go by the worst of several scenarios. `value_fn` returns the mean, for
            `accept`, and all of them as aux.

            >>> import jax, jax.numpy as jnp, optax
            >>> from egd_optax import evolve, recombine
            >>> class WorstCase(recombine.Recombine):
            ...   def support(self, population_size):
            ...     return None
            ...   def reads(self, aux):
            ...     return jnp.max(aux)
            ...   def weights(self, fitness, support, worst):
            ...     return recombine.centered_rank().weights(worst, support)
            >>> def value_fn(params):
            ...   scenarios = jnp.abs(params - jnp.arange(3.0))
            ...   return jnp.mean(scenarios), scenarios
            >>> tx = evolve(
            ...   optax.sgd(0.0), evolve_every=1, aux=jnp.zeros(3), recombine=WorstCase())
            >>> params = jnp.float32(2.0)
            >>> _, state = tx.update(params, tx.init(params), params, value_fn=value_fn)
            >>> int(state.cycle)
            1
        """
        del aux

    def weights(self, fitness: jax.Array, support: int, *read: Any) -> jax.Array:
        """The weights of all members.

        Args:
            fitness: of all members, float `[n]`, lower is better; +inf if not finite.
                Entry 0 is the parent's. Pairs with `accept.always()` do not evaluate the parent:
                it has no entry then.
            support: how many members, the best, can get a weight. All other weights count as
                zero. So does a weight that is not finite, or of a member without finite fitness.
            read: one argument, the numbers that `reads` returned, each with a leading axis `[n]`.
                Left out if that returns None.

        Returns:
            Real numbers, `[n]`.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `weights`.")


def mean(elite_fraction: float = 0.25) -> Recombine:
    """The best members, with equal weights: with a step of one the child is their mean.

    Args:
        elite_fraction: the share of the population that recombines, in (0, 1]. These are the
            best k = ceil(elite_fraction * population_size).

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Raises:
        TypeError: `elite_fraction` is no Python number.
        ValueError: `elite_fraction` is out of range.

    Cost:
        k members are kept, in the way of `Execution(memory=...)`, or drawn again.

    Example:
        >>> from egd_optax import egd, recombine
        >>> recombine.mean()
        recombine.mean(elite_fraction=0.25)
        >>> tx = egd(0.1, population_size=16, recombine=recombine.mean(elite_fraction=0.5))
    """
    return _Mean(elite_fraction)


def softmax(temperature: float = 1.0, elite_fraction: float = 0.25) -> Recombine:
    """The best members, with the softmax of -fitness / temperature as weights.

    Args:
        temperature: in units of fitness; the lower, the more the best one weighs.
        elite_fraction: the share of the population that recombines, see `mean`.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is no Python number.
        ValueError: an argument is out of range.

    Cost:
        The cost of `mean`.

    Example:
        >>> from egd_optax import egd, recombine
        >>> tx = egd(0.1, recombine=recombine.softmax(temperature=0.01))
    """
    return _Softmax(temperature, elite_fraction)


def centered_rank() -> Recombine:
    """All members, by rank: in equal steps from the best to the worst, which weighs negative.

    The weights sum to zero, their positive ones to one. Members of equal fitness weigh the
    same. A member without finite fitness has no rank and weighs nothing.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Cost:
        No member is kept, whatever the noise and `Execution(memory=...)`: all are drawn again.

    References:
        Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> from egd_optax import egd, recombine
        >>> tx = egd(0.1, population_size=16, antithetic=True, recombine=recombine.centered_rank())
        >>> recombine.centered_rank() == recombine.centered_rank()
        True
    """
    return _CenteredRank()


def elite_weights(fn: Callable[[jax.Array], jax.Array], elite_fraction: float = 0.25) -> Recombine:
    """The best members, weighed by a function of yours.

    Args:
        fn: maps the fitness of the best k, float `[k]`, to their weights, real numbers `[k]`. The
            best comes first. If fewer members have a finite fitness, the last entries are +inf.
        elite_fraction: the share of the population that recombines, see `mean`.

    Returns:
        The rule, an argument of `evolve` and `egd`; equal to another of the same function.

    Raises:
        TypeError: `fn` is no function, or `elite_fraction` no Python number. When a step is
            traced, `fn` returns weights that are not real.
        ValueError: `elite_fraction` is out of range. When a step is traced, `fn` returns
            weights of another shape, or NaN.

    Cost:
        The cost of `mean`.

    Example:
        Logarithmic weights, as in CMA-ES (Hansen, `The CMA Evolution Strategy: A Tutorial
        <https://arxiv.org/abs/1604.00772>`_, 2016):

        >>> import jax.numpy as jnp
        >>> from egd_optax import egd, recombine
        >>> def logarithmic(fitness):
        ...   k = fitness.size
        ...   weights = jnp.log(k + 0.5) - jnp.log(jnp.arange(1, k + 1))
        ...   return weights / weights.sum()
        >>> tx = egd(0.1, recombine=recombine.elite_weights(logarithmic, elite_fraction=0.5))
    """
    return _EliteWeights(fn, elite_fraction)


def member_weights(fn: Callable[[jax.Array], jax.Array]) -> Recombine:
    """All members, weighed by a function of yours.

    Args:
        fn: maps the fitness of all members, float `[n]`, to their weights, real numbers `[n]`.
            The parent's comes first. It is +inf if not finite. A weight that is not finite counts
            as zero.

    Returns:
        The rule, an argument of `evolve` and `egd`; equal to another of the same function.

    Raises:
        TypeError: `fn` is no function. When a step is traced, it returns weights that are not
            real.
        ValueError: when a step is traced, `fn` returns weights of another shape, or NaN.

    Cost:
        No member is kept, whatever the noise and `Execution(memory=...)`: all are drawn again.

    Example:
        >>> import jax.numpy as jnp
        >>> from egd_optax import egd, recombine
        >>> def standardized(fitness):
        ...   return (jnp.mean(fitness) - fitness) / (jnp.std(fitness) + 1e-9) / fitness.size
        >>> tx = egd(0.1, recombine=recombine.member_weights(standardized))
    """
    return _MemberWeights(fn)


def shuffled(rule: Recombine) -> Recombine:
    """The weights of another rule, handed out at random: what do cycles gain without selection?

    A control for experiments. A run with it jumps as often and as far as a run with `rule`. But the
    ranks of its members are random, and say nothing of their fitness. If it is as good, the gain is
    that of the noise.

    Two neighbours keep their weights together, in either order. The two of a mirrored pair are
    neighbours. Their weights pull in one direction, and random ones would cancel: the jumps would
    be shorter.

    Args:
        rule: the rule whose weights are handed out. A share of the population counts a parent that
            is evaluated besides.

    Returns:
        The rule, an argument of `evolve` and `egd`. The order is a random function of the bits of
        the fitness, another one in each generation. If the fitness is the same as in an earlier
        generation, so is the order, but the members are others. Two neighbours weigh nothing if one
        of them has no finite fitness.

    Raises:
        TypeError: `rule` is no `Recombine`.
        ValueError: `rule` reads more of the members than their fitness.

    Cost:
        No member is kept, whatever the noise and `Execution(memory=...)`: all are drawn again.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve, presets, recombine
        >>> rule = recombine.shuffled(recombine.centered_rank())
        >>> tx = evolve(optax.adam(1e-3), **{**presets.metric(), "recombine": rule})
        >>> fitness = jnp.arange(6.0)
        >>> selected = recombine.centered_rank().weights(fitness, 6)
        >>> bool(jnp.all(jnp.sort(rule.weights(fitness, 6)) == jnp.sort(selected)))
        True
    """
    return _Shuffled(rule)


class _Elites(Written, Recombine):
    """The best members; a subclass defines their weights."""

    elite_fraction: float

    def support(self, population_size: int) -> int:
        # 0.1 * 30 is 3.0000000000000004: a fraction that divides the population is exact.
        return max(1, math.ceil(round(self.elite_fraction * population_size, 9)))

    def weights(self, fitness: jax.Array, support: int) -> jax.Array:
        _, best = lax.top_k(-fitness, support)  # stable: ties go to the smaller index
        weights = checked_weights(self, self._of_elites(fitness[best]), support)
        return jnp.zeros(fitness.shape, weights.dtype).at[best].set(weights)

    def _of_elites(self, fitness: jax.Array) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class _Mean(_Elites):
    """See `mean`."""

    made_by = "recombine.mean"
    elite_fraction: float

    def __post_init__(self) -> None:
        settle(self, elite_fraction=check_fraction("elite_fraction", self.elite_fraction))

    def _of_elites(self, fitness: jax.Array) -> jax.Array:
        finite = jnp.isfinite(fitness).astype(fitness.dtype)
        return finite / jnp.maximum(jnp.sum(finite), jnp.ones([], fitness.dtype))


@dataclasses.dataclass(frozen=True, repr=False)
class _Softmax(_Elites):
    """See `softmax`."""

    made_by = "recombine.softmax"
    temperature: float
    elite_fraction: float

    def __post_init__(self) -> None:
        settle(
            self,
            temperature=check_static_number("temperature", self.temperature, zero=False),
            elite_fraction=check_fraction("elite_fraction", self.elite_fraction),
        )

    def _of_elites(self, fitness: jax.Array) -> jax.Array:
        # From the best on: the digits of a large fitness would be lost in the division.
        finite = jnp.isfinite(fitness)
        above = jnp.where(finite, fitness - jnp.min(fitness), 0)
        return jax.nn.softmax(-above / self.temperature, where=finite)


@dataclasses.dataclass(frozen=True, repr=False)
class _EliteWeights(_Elites):
    """See `elite_weights`."""

    made_by = "recombine.elite_weights"
    fn: Callable[[jax.Array], jax.Array]
    elite_fraction: float

    def __post_init__(self) -> None:
        check_function("fn", self.fn, "from the fitness of the elites to their weights")
        settle(self, elite_fraction=check_fraction("elite_fraction", self.elite_fraction))

    def _of_elites(self, fitness: jax.Array) -> jax.Array:
        return self.fn(fitness)


@dataclasses.dataclass(frozen=True, repr=False)
class _CenteredRank(Written, Recombine):
    """See `centered_rank`."""

    made_by = "recombine.centered_rank"

    def support(self, population_size: int) -> None:
        del population_size

    def weights(self, fitness: jax.Array, support: int) -> jax.Array:
        del support
        finite = jnp.isfinite(fitness)
        ordered = jnp.sort(fitness)
        # How many are better, and how many are worse: one search for both.
        sides = jnp.stack([ordered, -ordered[::-1]]), jnp.stack([fitness, -fitness])
        better, worse = jax.vmap(jnp.searchsorted)(*sides)
        not_finite = fitness.size - jnp.sum(finite)
        wins = jnp.where(finite, worse - not_finite - better, 0).astype(fitness.dtype)
        return wins / jnp.maximum(jnp.sum(jnp.maximum(wins, 0)), 1)


@dataclasses.dataclass(frozen=True, repr=False)
class _MemberWeights(Written, Recombine):
    """See `member_weights`."""

    made_by = "recombine.member_weights"
    fn: Callable[[jax.Array], jax.Array]

    def __post_init__(self) -> None:
        check_function("fn", self.fn, "from the fitness of all members to their weights")

    def support(self, population_size: int) -> None:
        del population_size

    def weights(self, fitness: jax.Array, support: int) -> jax.Array:
        del support
        return self.fn(fitness)


@dataclasses.dataclass(frozen=True, repr=False)
class _Shuffled(Written, Recombine):
    """See `shuffled`."""

    made_by = "recombine.shuffled"
    rule: Recombine

    def __post_init__(self) -> None:
        fix = "write `recombine.shuffled(recombine.centered_rank())`, for example"
        check_operator("rule", self.rule, Recombine, fix)
        if type(self.rule).reads is not Recombine.reads:
            raise ValueError(
                f"`rule` must weigh by the fitness alone, got {self.rule!r} with `reads`: {fix}."
            )

    def support(self, population_size: int) -> None:
        del population_size

    def weights(self, fitness: jax.Array, support: int) -> jax.Array:
        most = self.rule.support(fitness.size)
        weights = jnp.asarray(self.rule.weights(fitness, support if most is None else most))
        # Of an odd number the first is a parent that belongs to no pair: its weight moves nothing.
        alone = fitness.size % 2
        pairs = weights[alone:].reshape(-1, 2)
        whole = jnp.all(jnp.isfinite(fitness[alone:].reshape(-1, 2)), axis=1)
        by_chance, sides = jax.random.split(_key_from(fitness))
        numbers = jax.random.uniform(by_chance, whole.shape)
        # Those that weigh nothing come last in both orders.
        order, places = jnp.argsort(~whole), jnp.argsort(jnp.where(whole, numbers, jnp.inf))
        pairs = jnp.zeros_like(pairs).at[places].set(jnp.where(whole[:, None], pairs, 0)[order])
        turned = jax.random.bernoulli(sides, shape=whole.shape)
        pairs = jnp.where(turned[:, None], pairs[:, ::-1], pairs)
        return jnp.concatenate([weights[:alone], pairs.ravel()])


def _key_from(fitness: jax.Array) -> jax.Array:
    """A key that any bit of the fitness changes."""
    bits = lax.bitcast_convert_type(fitness.astype(jnp.float32), jnp.uint32)

    def fold(key: jax.Array, word: jax.Array) -> tuple[jax.Array, None]:
        return jax.random.fold_in(key, word), None

    start = jax.random.key(0, impl="threefry2x32")
    return lax.scan(fold, start, bits)[0]


def checked_weights(rule: Recombine, weights: jax.Array, count: int) -> jax.Array:
    """Weights that a rule has returned; raises an error with its name if they are invalid."""
    weights = jnp.asarray(weights)
    if weights.shape != (count,):
        raise ValueError(
            f"`recombine` must return one weight for each of {count} members, shape ({count},), "
            f"got shape {weights.shape} from {rule!r}."
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(f"`recombine` must return real weights, got {weights.dtype} from {rule!r}.")
    return weights
