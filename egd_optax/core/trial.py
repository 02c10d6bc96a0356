"""A trial of a user's noise while a step is traced, so that an error names it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from egd_optax.core.perturbation import Perturbation, is_of_library, lay_out
from egd_optax.noise import Noise


def check_noise(noise: Noise, leaves: Sequence[jax.Array]) -> None:
    """Draws the noise of the smallest leaf once, unless all methods are the library's own.

    Inside of manual axes nothing is drawn: no computation can run while those are traced.

    Raises:
        ValueError: the noise is NaN or infinite.
    """
    sizes = [leaf.size or jnp.inf for leaf in leaves]
    if is_of_library(noise) or not leaves or jax.sharding.get_abstract_mesh().manual_axes:
        return
    smallest = leaves[sizes.index(min(sizes))]
    with jax.ensure_compile_time_eval():
        leaf = jnp.zeros(smallest.shape, smallest.dtype)
        layout, keys = lay_out(noise, [leaf], [leaf]), jnp.zeros((1, 2), jnp.uint32)
        (unit,) = Perturbation((leaf[None],), (), keys, layout, noise).raw_units(jnp.int32(0))
        finite = jnp.all(jnp.isfinite(unit))
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(
            f"`noise` must be finite, got NaN or infinite numbers from {noise!r} for a leaf of "
            f"shape {smallest.shape} and a standard deviation of one."
        )
