"""`separable`: a standard deviation for every parameter, which adapts to what wins."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_static_number
from egd_optax._written import Written, settle
from egd_optax.noise.interface import Noise, check_scale
from egd_optax.noise.outcome import Outcome


def separable(
    learning_rate: float | None = None, relative: bool = False, min_scale: float = 1e-3
) -> Noise:
    """A standard deviation for every parameter, adapted by the separable natural gradient.

    It starts at `sigma` everywhere. After each generation it grows along parameters that are far
    from their parent in good members. It shrinks along those that are near: `std *
    exp(learning_rate / 2 * sum of weight * (z**2 - 1))`. Here z is the noise over its standard
    deviation. A schedule of `sigma` multiplies it.

    Args:
        learning_rate: of the logarithm of the standard deviation, above 0. None for that of the
            paper, (3 + log d) / (5 sqrt(d)) for d mutating parameters.
        relative: whether `sigma` is a fraction of the root mean square of each leaf; False: in
            units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `learning_rate` is not above 0, or `min_scale` is negative; both are finite.

    Cost:
        The cost of `gaussian`. The state has an array like each mutating leaf, in float32 or wider
        and divided over a mesh as the leaf is. After a generation each member with a weight is
        drawn once more, into a sum of that size.

    References:
        Schaul, Glasmachers and Schmidhuber, `High Dimensions and Heavy Tails for Natural Evolution
        Strategies <https://doi.org/10.1145/2001576.2001692>`_, 2011.

    Example:
        SNES, with the weights of the paper. The first of two parameters counts a hundred times
        as much, and its standard deviation becomes the smaller one.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import accept, evolve, noise, recombine
        >>> def utilities(fitness):
        ...   rank = jnp.argsort(jnp.argsort(fitness)) + 1
        ...   gain = jnp.maximum(jnp.log(fitness.size / 2 + 1) - jnp.log(rank), 0)
        ...   return gain / jnp.sum(gain) - 1 / fitness.size
        >>> tx = evolve(
        ...   optax.set_to_zero(), evolve_every=1, population_size=16, sigma=0.5,
        ...   noise=noise.separable(), recombine=recombine.member_weights(utilities),
        ...   accept=accept.always())
        >>> def loss(params): return 100 * params[0] ** 2 + params[1] ** 2
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(params, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> params = jnp.array([1.0, 10.0])
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> first, second = state.strategy_state.noise.log_std
        >>> bool(first < second), bool(loss(params) < 1e-3)
        (True, True)
    """
    return _Separable(learning_rate, relative, min_scale)


class SeparableState(NamedTuple):
    """The state of `separable`.

    Attributes:
        log_std: the logarithm of the standard deviation of each parameter over that of the start,
            a pytree like the mutating parameters, in float32 or wider.
    """

    log_std: optax.Params


@dataclasses.dataclass(frozen=True, repr=False)
class _Separable(Written, Noise):
    """See `separable`."""

    made_by = "noise.separable"

    learning_rate: float | None
    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        check_scale(self)
        if self.learning_rate is not None:
            rate = check_static_number("learning_rate", self.learning_rate, zero=False)
            settle(self, learning_rate=rate)

    @staticmethod
    def statistic(unit: jax.Array) -> jax.Array:
        return jnp.square(jnp.abs(unit)) - 1

    def init(self, params: optax.Params) -> SeparableState:
        return SeparableState(
            jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.finfo(leaf.dtype).dtype), params)
        )

    def reads(self, base_state: optax.OptState, state: Any) -> optax.Params:
        del base_state
        return state.log_std

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        assert read is not None  # narrows the type: `reads` returns a tree
        return super().std(leaf, sigma, None) * jnp.exp(read.astype(sigma.dtype))

    def adapt(self, state: SeparableState, outcome: Outcome) -> SeparableState:
        count = sum(leaf.size for leaf in jax.tree.leaves(state.log_std))
        rate = self.learning_rate or (3 + math.log(count)) / (5 * math.sqrt(count))
        # The parent is a member without noise. Pairs that do not rank it give it no weight.
        of_parent = outcome.weights[0]
        log_std = jax.tree.map(
            lambda log, total: log + rate / 2 * (total.real - of_parent),
            state.log_std,
            outcome.statistic,
        )
        return SeparableState(log_std)
