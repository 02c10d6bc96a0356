"""`lattice`: noise for weights that exist only as integers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._checks import check_static_number
from egd_optax._written import Written, settle
from egd_optax.noise.interface import Noise, check_scale


def lattice(
    low: int | None = None,
    high: int | None = None,
    steps_per_sigma: float = 1.0,
    relative: bool = True,
    min_scale: float = 1e-3,
) -> Noise:
    """Noise in whole steps for integer leaves of at most 8 bits, and `gaussian` for all others.

    For weights that have no master copy of floats. Members are integers: a normal number is rounded
    at random, up or down, so that its mean stays, and clipped to the range. The child is rounded to
    the nearest integers. `state.strategy_state.residual` keeps the fraction that is lost,
    and the next child starts from there. So steps far below one add up. If a child is not taken,
    weights that it would have moved keep their fraction from before. All others have that of the
    child, for its fitness says nothing against it.

    Only integer leaves that `mutable` selects evolve. The base does not see them, and their
    gradients, zeros, float0 or None, are not read. Their updates have their dtype. `es_optimizer`
    sees them as float32.

    Args:
        low: the least integer; None for that of the dtype of a leaf.
        high: the greatest integer; None for that of the dtype of a leaf. Ternary weights are those
            from -1 to 1.
        steps_per_sigma: the standard deviation of integer leaves is `sigma` times this number of
            steps. At a deviation of s steps, small against one, about 0.8 s of all weights differ
            from the parent's.
        relative: of other leaves, whether `sigma` is a fraction of their root mean square.
        min_scale: of other leaves, floor of that root mean square, in units of the parameters.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `high` is not above `low`, or another argument is out of range. When a step is
            traced, no two integers of a leaf's dtype are in the range, or `mutable` selects
            integers of more than 8 bits.

    Cost:
        A normal number and a uniform one for every weight and member, for either member of a
        mirrored pair. The state takes a byte a weight, a member that is held as well. A cycle holds
        two bytes a weight for the parent, two for the child if it is evaluated, and their
        weighted sum in float32. Each integer leaf is a piece of the program.

    References:
        Xu et al., `Quantized Evolution Strategies <https://arxiv.org/abs/2602.03120>`_, 2026.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import accept, evolve, noise, recombine
        >>> tx = evolve(
        ...   optax.set_to_zero(), evolve_every=1, population_size=16, antithetic=True, sigma=0.3,
        ...   noise=noise.lattice(-1, 1), recombine=recombine.centered_rank(),
        ...   accept=accept.always(), mutable=True)
        >>> params = {"ternary": jnp.zeros(6, jnp.int8)}
        >>> def loss(params): return jnp.sum(jnp.abs(params["ternary"] - 0.8))
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   updates, state = tx.update(None, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> params["ternary"].tolist(), params["ternary"].dtype.name
        ([1, 1, 1, 1, 1, 1], 'int8')
    """
    return _Lattice(low, high, steps_per_sigma, relative, min_scale)


@dataclasses.dataclass(frozen=True, repr=False)
class _Lattice(Written, Noise):
    """See `lattice`."""

    made_by = "noise.lattice"

    low: int | None
    high: int | None
    steps_per_sigma: float
    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"`{name}` must be a Python int or None, got {value!r}.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"`high` must be above `low` ({self.low}), got {self.high}.")
        scale = check_static_number("steps_per_sigma", self.steps_per_sigma, zero=False)
        settle(self, steps_per_sigma=scale)
        check_scale(self)

    def bounds(self, leaf: Any) -> tuple[int, int]:
        info = jnp.iinfo(leaf.dtype)
        least, most = int(info.min), int(info.max)
        low = least if self.low is None else max(self.low, least)
        high = most if self.high is None else min(self.high, most)
        if low >= high:
            raise ValueError(
                f"`noise` must leave two integers to a leaf of {leaf.dtype}, got {self!r}, whose "
                f"range and that of the dtype, {least} to {most}, have none or one in common."
            )
        return low, high

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return sigma * self.steps_per_sigma
        return super().std(leaf, sigma, read)
