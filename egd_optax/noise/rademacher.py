"""Noise of plus or minus one standard deviation."""

import dataclasses

import jax
import jax.numpy as jnp

from egd_optax._written import Written
from egd_optax.noise.interface import Noise, Parts, check_scale


def rademacher(relative: bool = True, min_scale: float = 1e-3) -> Noise:
    """Noise whose every entry is one standard deviation, up or down; an argument of `evolve`.

    All members are equally far from their parent.

    Args:
        relative: whether `sigma` is a fraction of each leaf's root mean square; else it is in units
            of the parameters.
        min_scale: floor of that root mean square, in units of the parameters.

    Returns:
        The noise; equal to another one with the same settings.

    Raises:
        TypeError: `relative` is no bool, or `min_scale` no number.
        ValueError: `min_scale` is negative or not finite.

    Cost:
        The cost of `gaussian`: the sign of a normal number for every parameter and member.

    References:
        Spall, `Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
        Approximation <https://doi.org/10.1109/9.119632>`_, 1992.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import accept, evolve, noise, recombine
        >>> tx = evolve(optax.sgd(0.1), population_size=2, sigma=0.5,
        ...   noise=noise.rademacher(relative=False), recombine=recombine.mean(1.0))
        >>> params = jnp.zeros(4)
        >>> def loss(p): return -jnp.sum(p**2)
        >>> updates, _ = tx.update(params, tx.init(params), params, value_fn=loss,
        ...   evolve=True)
        >>> jnp.abs(updates).tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    return _Rademacher(relative, min_scale)


@dataclasses.dataclass(frozen=True, repr=False)
class _Rademacher(Written, Noise):
    """See `rademacher`."""

    made_by = "noise.rademacher"

    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        check_scale(self)

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        del leaf
        (normal,) = parts
        return jnp.where(normal < 0, -jnp.ones_like(normal), jnp.ones_like(normal))
