"""The outcome of a generation, for operators that adapt."""

from typing import NamedTuple

import jax
import optax


class Outcome(NamedTuple):
    """The outcome of a generation, for a noise that adapts.

    Attributes:
        fitness: of all members, `[n]`, the parent's first; +inf if not finite.
        weights: the weight of each member in the child, `[n]`.
        draw_weights: the weight of each draw of noise in the child, `[draws]`: of a mirrored pair
            the difference of its weights.
        child_fitness: `[]`, +inf if the child was not evaluated.
        accepted: bool `[]`, whether the parameters left the parent.
        statistic: the sum of weight * `Noise.statistic(noise)` over all members but the parent, a
            pytree like the parameters; None if the noise has no statistic.

    Example:
        Sigma grows while children are taken, and shrinks otherwise.

        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> class Adaptive(noise.Noise):
        ...   def init(self, params):
        ...     return jnp.float32(1.0)
        ...   def sigma(self, sigma, state):
        ...     return sigma * state
        ...   def adapt(self, state, outcome):
        ...     return state * jnp.where(outcome.accepted, 1.1, 0.97)
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, noise=Adaptive())
        >>> params = jnp.ones(3)
        >>> _, state = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
        >>> round(float(state.strategy_state.noise), 2)
        1.1
    """

    fitness: jax.Array
    weights: jax.Array
    draw_weights: jax.Array
    child_fitness: jax.Array
    accepted: jax.Array
    statistic: optax.Params | None
