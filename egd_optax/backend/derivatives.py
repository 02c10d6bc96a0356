"""Derivatives of a program with a loop that has none.

A loop whose number of trips is not known when it is traced has no derivative in reverse mode.
Whatever enters the loop is a constant, so that it needs none; what comes out follows what went in.
"""

import numbers
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def constant(tree: T) -> T:
    """Returns the same arrays, without derivatives; adds nothing to a program."""
    kinds = jax.Array | np.ndarray | numbers.Number
    result: T = jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, kinds) else leaf, tree
    )
    return result


def following(outcome: T, before: T, left: jax.Array) -> T:
    """The outcome, with the derivatives of what was before but where that was left.

    Adds nothing to a program that is not differentiated.

    Args:
        outcome: pytree of arrays without derivatives.
        before: a pytree like it.
        left: bool `[]`.
    """
    leaves, treedef = jax.tree.flatten(outcome)
    sources = jax.tree.leaves(before)
    inexact = [at for at, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    own = _following([leaves[at] for at in inexact], [sources[at] for at in inexact], left)
    for at, leaf in zip(inexact, own, strict=True):
        leaves[at] = leaf
    result: T = jax.tree.unflatten(treedef, leaves)
    return result


@jax.custom_jvp
def _following(
    outcome: list[jax.Array], before: list[jax.Array], left: jax.Array
) -> list[jax.Array]:
    del before, left
    return outcome


@_following.defjvp
def _followed(primals: Any, tangents: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    _, _, left = primals
    _, changes, _ = tangents
    # As the function itself, which has derivatives again.
    return _following(*primals), [
        jnp.where(left, jnp.zeros_like(change), change) for change in changes
    ]
