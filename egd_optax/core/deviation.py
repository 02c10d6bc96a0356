"""The standard deviation of the noise in each block."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax.backend import arithmetic
from egd_optax.backend.devices import divided_like
from egd_optax.backend.packing import Block
from egd_optax.noise.interface import Noise, relative_std


def stds_of(
    noise: Noise, block: Block, parent: jax.Array, sigma: jax.Array, read: jax.Array | None
) -> jax.Array:
    """The standard deviations in a block, the same bits for each leaf as for that leaf alone.

    Args:
        noise: the distribution of the perturbations.
        block: a block.
        parent: its leaves, to which noise is added.
        sigma: `[]`.
        read: the arrays that the noise reads, in this block; None for nothing.

    Returns:
        `[many, 1, ...]`, or `[many, ...]` if each entry has one of its own. If the leaves are cut
        into rows and have one for all, `[1, 1]`.
    """
    sigma = sigma.astype(arithmetic.real_dtype(parent.dtype))
    if block.runs:  # its noise reads nothing
        return _stds_of_rows(noise, block, parent, sigma)
    return _stds_of_stack(noise, parent, sigma, read)


def _stds_of_stack(
    noise: Noise, stack: jax.Array, sigma: jax.Array, read: jax.Array | None
) -> jax.Array:
    """The standard deviations in a stack, leaf by leaf."""

    def std(leaf: jax.Array, read: jax.Array | None) -> jax.Array:
        found = jnp.asarray(noise.std(leaf, sigma, read), sigma.dtype)
        fits = all(own in (1, size) for own, size in zip(found.shape, leaf.shape, strict=False))
        if found.ndim not in (0, leaf.ndim) or not fits:
            raise ValueError(
                f"`noise.std` must return a scalar or an array like its leaf, {leaf.shape}, got "
                f"shape {found.shape} from {noise!r}."
            )
        if found.shape == leaf.shape:  # a state may be divided in another way than its leaf
            found = divided_like(found, leaf)
        return _usable(found.reshape(found.shape or (1,) * leaf.ndim))

    if not stack.size:
        return jnp.zeros((stack.shape[0], *(1,) * (stack.ndim - 1)), sigma.dtype)
    if stack.shape[0] == 1:
        return std(stack[0], None if read is None else read[0])[None]
    stds: jax.Array = lax.map(lambda pair: std(*pair), (stack, read))
    return stds


def _stds_of_rows(noise: Noise, block: Block, rows: jax.Array, sigma: jax.Array) -> jax.Array:
    """The standard deviations of leaves that are cut into rows."""
    if not noise.relative:
        return _usable(sigma).reshape(1, 1)
    squares = jnp.square(jnp.abs(rows).astype(sigma.dtype))
    # A product: XLA may turn a division by constants into one, or not.
    shares = 1 / np.maximum(block.sizes, 1)
    means = block.sums(squares) * shares.astype(sigma.dtype)
    stds = _usable(relative_std(noise, sigma, means))
    return stds[np.repeat(np.arange(len(block.leaves)), block.heights)][:, None]


def _usable(std: jax.Array) -> jax.Array:
    """A standard deviation, zero if it is too large."""
    # Noise is nowhere 64 deviations away: it is finite, and no times it is zero.
    return jnp.where(jnp.isfinite(64 * std), std, jnp.zeros_like(std))
