"""How far a cycle moved the parameters."""

import jax
import jax.numpy as jnp

from egd_optax.backend import fixed_point
from egd_optax.backend.arithmetic import add, widen
from egd_optax.backend.packing import Arrays, Block
from egd_optax.core.blocks import Blocks
from egd_optax.core.fitness import fitness_dtype


def update_norm(before: Blocks, updates: Arrays) -> jax.Array:
    """The root mean square of what updates add to those before, over that of the parameters, `[]`.

    Args:
        before: the parameters and the updates before.
        updates: in blocks.
    """
    blocks = before.layout.blocks
    steps = map(_step, before.params, updates, before.held_updates)
    moved = sum(map(_sum_of_squares, blocks, steps))
    size = sum(map(_sum_of_squares, blocks, before.params))
    return jnp.sqrt(moved / jnp.maximum(size, jnp.finfo(fitness_dtype()).tiny))


def _step(params: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """How far updates lead from those before; of integers in whole steps."""
    if fixed_point.is_integer(params.dtype):
        new, old = add(params, new), add(params, old)
    return widen(new) - widen(old)


def _sum_of_squares(block: Block, leaves: jax.Array) -> jax.Array:
    squares = jnp.square(jnp.abs(widen(leaves)))
    return jnp.sum(block.cleared(squares) if block.runs else squares, dtype=fitness_dtype())
