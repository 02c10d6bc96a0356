"""`gaussian`: an independent normal number for every parameter."""

import dataclasses

from egd_optax._written import Written
from egd_optax.noise.interface import Noise, check_scale


def gaussian(relative: bool = True, min_scale: float = 1e-3) -> Noise:
    """An independent normal number for every parameter.

    Args:
        relative: whether `sigma` is a fraction of the root mean square of each leaf; False: in
            units of the parameters.
        min_scale: floor of that root mean square, in units of the parameters, so that leaves
            initialised to zero move.

    Returns:
        The noise, an argument of `evolve` and `egd`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `min_scale` is negative or not finite.

    Cost:
        A normal number for every parameter and member.

    References:
        Rechenberg, `Evolutionsstrategie`, 1973; with draws that are repeated from their keys:
        Salimans et al., `Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        >>> from egd_optax import egd, noise
        >>> noise.gaussian(relative=False)
        noise.gaussian(relative=False, min_scale=0.001)
        >>> tx = egd(0.1, sigma=0.5, noise=noise.gaussian(relative=False))
    """
    return _Gaussian(relative, min_scale)


@dataclasses.dataclass(frozen=True, repr=False)
class _Gaussian(Written, Noise):
    """See `gaussian`."""

    made_by = "noise.gaussian"

    relative: bool
    min_scale: float

    def __post_init__(self) -> None:
        check_scale(self)
