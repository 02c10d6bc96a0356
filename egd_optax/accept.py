"""Accept: a generation ends with its parent, its best member or the child.

>>> from egd_optax import accept, egd
>>> tx = egd(0.1, accept=accept.improved())

A rule of your own is a subclass of `Accept` with a method `choose`. Simulated annealing, for
example, also takes a child that is a little worse:

>>> import dataclasses
>>> import jax, jax.numpy as jnp
>>> @dataclasses.dataclass(frozen=True)
... class Annealed(accept.Accept):
...   temperature: float = 0.1
...   decay: float = 0.9
...   takes_best = False
...   def init(self, params):
...     return jnp.float32(self.temperature)
...   def choose(self, key, parent, best, child, state):
...     chance = jnp.exp((parent - child) / state)
...     taken = jax.random.uniform(key) < chance
...     return jnp.where(taken, accept.CHILD, accept.PARENT), state * self.decay
>>> tx = egd(0.1, accept=Annealed(temperature=0.01))
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax._written import Written

__all__ = ["BEST", "CHILD", "PARENT", "Accept", "always", "best", "improved"]

PARENT, BEST, CHILD = range(3)
"""The three things that `Accept.choose` can return; a generation then ends with this one."""


class Accept:
    """A rule that chooses what a generation ends with; subclass it to write your own.

    Only `choose` is needed. Make a subclass that has settings a
    `@dataclasses.dataclass(frozen=True)`, so that it is compared and hashed by value. Give it no
    `__call__`, because `optax.inject_hyperparams` would take it for a schedule.

    The library checks each choice. A candidate that was evaluated and has no finite fitness is
    never taken. The parent is taken if the child is no other than the parent, or if the best
    member is the parent itself.

    Attributes:
        compares: whether parent and child are evaluated. If False, the child is not evaluated, and
            neither is the parent of mirrored pairs. Their fitness is then +inf.
        takes_best: whether `choose` may return `BEST`. If False, that counts as `PARENT`, and no
            generation draws or evaluates its best member again.

    Example:
        The child if its fitness is finite, even if it is worse.

        >>> import jax.numpy as jnp
        >>> from egd_optax import accept, egd
        >>> class Finite(accept.Accept):
        ...   takes_best = False
        ...   def choose(self, key, parent, best, child, state):
        ...     return accept.CHILD, state
        >>> tx = egd(0.1, accept=Finite())
    """

    compares: bool = True
    takes_best: bool = True
    # Whether only a candidate below the parent is taken, which needs no more checks: +inf is never
    # below, and neither is the parent itself. The check of the others ranks all members again.
    _ties_go_to_parent = False

    def init(self, params: optax.Params) -> Any:
        """Makes the state of the rule; `EvolveState.strategy_state.accept` holds it.

        Args:
            params: pytree of arrays, the parameters as passed to `init` of the optimizer.

        Returns:
            A pytree of arrays, `()` by default. Its structure, shapes and dtypes stay the same.
        """
        del params
        return ()

    def choose(
        self, key: jax.Array, parent: jax.Array, best: jax.Array, child: jax.Array, state: Any
    ) -> tuple[jax.typing.ArrayLike, Any]:
        """Chooses what a generation ends with; called once each generation.

        With `accept_value_fn` each fitness is that of `accept_value_fn`.

        Args:
            key: threefry key of this cycle and generation, for `jax.random`. The noise of the
                members does not depend on it.
            parent: fitness of the parent, float `[]`, +inf if not finite or not evaluated.
            best: fitness of the best member, like `parent`.
            child: fitness of the child, like `parent`.
            state: the state of the rule, see `init`.

        Returns:
            `PARENT`, `BEST` or `CHILD`, int32 `[]`, and the next state of the rule. The next
            generation gets that state, whichever candidate was taken.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method `choose`.")


def best() -> Accept:
    """Takes the best of child, best member and parent.

    Ties go to the parent, then to the best member.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Cost:
        One evaluation, of the child; with mirrored pairs another one, of the parent. If the best
        member is taken, it is drawn again.

    Example:
        >>> from egd_optax import accept, egd
        >>> tx = egd(0.1, accept=accept.best())
    """
    return _Best()


def improved() -> Accept:
    """Takes the child if it is better than the parent.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Cost:
        One evaluation, of the child; with mirrored pairs another one, of the parent.

    Example:
        >>> from egd_optax import accept, egd
        >>> tx = egd(0.1, accept=accept.improved())
    """
    return _Improved()


def always() -> Accept:
    """Takes the child without evaluating it.

    Returns:
        The rule, an argument of `evolve` and `egd`.

    Cost:
        No evaluation besides those of the members.

    References:
        As in evolution strategies: Salimans et al., `Evolution Strategies as a Scalable
        Alternative to Reinforcement Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> from egd_optax import accept, egd
        >>> tx = egd(0.1, accept=accept.always())
    """
    return _Always()


@dataclasses.dataclass(frozen=True, repr=False)
class _Best(Written, Accept):
    """See `best`."""

    made_by = "accept.best"
    _ties_go_to_parent = True

    def choose(
        self, key: jax.Array, parent: jax.Array, best: jax.Array, child: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        del key
        # The first of equals, so that ties go to the parent.
        return jnp.argmin(jnp.stack([parent, best, child])).astype(jnp.int32), state


@dataclasses.dataclass(frozen=True, repr=False)
class _Improved(Written, Accept):
    """See `improved`."""

    made_by = "accept.improved"
    _ties_go_to_parent = True
    takes_best = False

    def choose(
        self, key: jax.Array, parent: jax.Array, best: jax.Array, child: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        del key, best
        return jnp.where(child < parent, CHILD, PARENT), state


@dataclasses.dataclass(frozen=True, repr=False)
class _Always(Written, Accept):
    """See `always`."""

    made_by = "accept.always"
    compares = False
    takes_best = False

    def choose(
        self, key: jax.Array, parent: jax.Array, best: jax.Array, child: jax.Array, state: Any
    ) -> tuple[int, Any]:
        del key, parent, best, child
        return CHILD, state
