"""Arrays out of their blocks, each in a buffer of its own.

XLA would take an array out of its block within the operation that uses it. Each layer of a network
would then be another piece of program. So equal arrays are taken out in a branch or a loop of their
own. Rows become stacks first, and stacks arrays. Two thousand equal arrays are about fifty stacks
of about fifty. So a hundred pieces take all of them out.
"""

from collections.abc import Callable, Sequence
import functools
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from egd_optax.backend import xla
from egd_optax.backend.packing import Arrays, Layout

T = TypeVar("T")
# Equal arrays in a stack, by their positions.
Stacks = dict[tuple[int, ...], jax.Array]


def unpack(
    layout: Layout, blocks: Sequence[jax.Array | None], witness: jax.Array
) -> dict[int, jax.Array]:
    """Returns the arrays in some blocks by their positions.

    An array that has no equal is in no buffer of its own: it is another piece anyway.

    Args:
        layout: how they are laid out.
        blocks: the blocks, None for one that is left out.
        witness: see `xla.opaque_false`.
    """
    alone, stacks = _alone(layout, blocks), _of_stacks(layout, blocks)
    like = stacks | _of_rows(layout, blocks)  # for the shapes: XLA drops what nobody uses
    if not like:
        return alone

    def apart() -> dict[int, jax.Array]:
        always = ~xla.opaque_false(witness)
        of_rows = _copied(always, functools.partial(_of_rows, layout), list(blocks))
        return _split(stacks | of_rows)

    # No loop: it would start from as many blanks, which are copies.
    return alone | xla.hold_in_branch(witness, apart, lambda: _blank(like))


def unpack_if(
    pred: jax.Array,
    layout: Layout,
    blocks: Sequence[jax.Array],
    arrays: Arrays,
    *,
    chosen: bool,
) -> Arrays:
    """Returns the arrays in all blocks, in the memory of others, if `pred` holds, else those.

    Args:
        pred: bool `[]`.
        layout: how they are laid out.
        blocks: the blocks.
        arrays: of the shapes and dtypes of those in the blocks, in the order of their positions.
        chosen: whether the blocks hold these if `pred` does not hold. Arrays that have no equal
            are then those of their blocks.
    """

    def write(
        before: dict[int, jax.Array], blocks: list[jax.Array], pred: jax.Array
    ) -> dict[int, jax.Array]:
        of_rows = _copied(pred, functools.partial(_of_rows, layout), blocks)
        found = _alone(layout, blocks) | _split(_of_stacks(layout, blocks) | of_rows)
        return {at: found[at] for at in before}

    found = _uncut(layout, blocks)
    others = {at: array for at, array in enumerate(arrays) if at not in found}
    if not chosen:
        found = {at: jnp.where(pred, array, arrays[at]) for at, array in found.items()}
    if others:
        found |= xla.run_if(pred, write, others, list(blocks), pred)
    return tuple(found[at] for at in range(len(arrays)))


def _alone(layout: Layout, blocks: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
    """The arrays that have no equal."""
    pairs = zip(layout.blocks, blocks, strict=True)
    runs = [(run, rows) for block, rows in pairs if rows is not None for run in block.runs]
    cut = {run.leaves[0]: run.stacked(rows)[0] for run, rows in runs if len(run.leaves) == 1}
    return _uncut(layout, blocks) | cut


def _uncut(layout: Layout, blocks: Sequence[jax.Array | None]) -> dict[int, jax.Array]:
    """The arrays that are not cut into rows: each is a block."""
    return {
        block.leaves[0]: array[0]
        for block, array in zip(layout.blocks, blocks, strict=True)
        if array is not None and not block.runs and block.many == 1
    }


def _of_rows(layout: Layout, blocks: Sequence[jax.Array | None]) -> Stacks:
    """The others that are cut into rows, in stacks."""
    pairs = zip(layout.blocks, blocks, strict=True)
    runs = [(run, rows) for block, rows in pairs if rows is not None for run in block.runs]
    return {run.leaves: run.stacked(rows) for run, rows in runs if len(run.leaves) > 1}


def _of_stacks(layout: Layout, blocks: Sequence[jax.Array | None]) -> Stacks:
    """The others that are in stacks."""
    pairs = zip(layout.blocks, blocks, strict=True)
    known = [(block, stack) for block, stack in pairs if stack is not None and not block.runs]
    return {block.leaves: stack for block, stack in known if block.many > 1}


def _copied(pred: jax.Array, take_out: Callable[[T], Stacks], source: T) -> Stacks:
    """Stacks in buffers of their own; of no use unless `pred` holds, which XLA may not know."""
    like = take_out(source)
    if not like:
        return like
    blank = jax.tree.map(jnp.zeros_like, like)
    copied: Stacks = xla.run_if(pred, lambda _, source: take_out(source), blank, source)
    return copied


def _split(stacks: Stacks) -> dict[int, jax.Array]:
    """The arrays in stacks by their positions."""
    return {
        at: lax.squeeze(array, [0])
        for of, stack in stacks.items()
        for at, array in zip(of, lax.split(stack, (1,) * len(of)), strict=True)
    }


def _blank(stacks: Stacks) -> dict[int, jax.Array]:
    """Zeros like the arrays in stacks."""
    like = {of: jnp.zeros_like(stack[0]) for of, stack in stacks.items()}
    return {at: blank for of, blank in like.items() for at in of}
