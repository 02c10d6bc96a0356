"""What a gradient predicts of mirrored pairs, and what their fitness says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax.backend.arithmetic import widen
from egd_optax.base.arguments import taken_by
from egd_optax.base.trees import aligned, flatten
from egd_optax.core.fitness import Snapshot, fitness_dtype, fitness_of
from egd_optax.core.population import Candidate, generation_key, population_around
from egd_optax.core.spec import CycleSpec


def differences_around(
    spec: CycleSpec,
    params: optax.Params,
    grads: optax.Updates,
    mutating: tuple[int, ...],
    functions: Sequence[Callable[..., Any]],
    extra_args: Mapping[str, Any],
    key_data: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Half the differences between the members of each pair, predicted and measured.

    Args:
        spec: says how members are drawn, in mirrored pairs.
        params: the parameters around which they are drawn.
        grads: the gradient there, a pytree like `params`.
        mutating: positions of the leaves that mutate.
        functions: the fitness, on some samples or others.
        extra_args: their other arguments.
        key_data: uint32 `[2]`, the key of the run.

    Returns:
        The prediction of the gradient, `[pairs]`, and the difference by each fitness, `[fitness,
        pairs]`; NaN if one of the two members has no finite fitness. Costs two forward passes a
        pair and fitness, and a draw a pair.
    """
    leaves, treedef = flatten(params)
    own = tuple(jnp.asarray(leaves[at]) for at in mutating)
    zeros = tuple(map(jnp.zeros_like, own))
    snapshot = Snapshot(own, zeros, tuple(leaves), treedef, mutating)
    population = population_around(
        own,
        zeros,
        mutating,
        noise=spec.noise,
        mirrors=True,
        sigma=jnp.asarray(spec.sigma, fitness_dtype()),
        read=None,
        key=generation_key(key_data, jnp.int32(0), jnp.int32(0)),
    )
    fitness = [
        fitness_of(fn, snapshot, kwargs=taken_by(fn, extra_args), execution=spec.execution)
        for fn in functions
    ]
    by_leaf = aligned(grads, params)
    slopes = [widen(by_leaf[at]) for at in mutating]
    center = population.parent().center
    counts = jnp.bool_(True)

    def pair(draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, whole = population.draw_rows(draw), population.draw_whole(draw)
        other = population.mirrored_whole(whole)
        ahead = population.leaves(Candidate(rows, whole, center), jnp.float32(1))
        behind = population.leaves(Candidate(rows, other, center), jnp.float32(-1))
        found = jnp.stack(
            [(fn(ahead, counts).value - fn(behind, counts).value) / 2 for fn in fitness]
        )
        halves = ((widen(ahead[at]) - widen(behind[at])) / 2 for at in range(len(slopes)))
        # The derivative along a complex number is the real part of its product with the gradient.
        terms = (jnp.sum(jnp.real(slope * by)) for slope, by in zip(slopes, halves, strict=True))
        return jnp.asarray(sum(terms), found.dtype), jnp.where(jnp.isfinite(found), found, jnp.nan)

    predicted, found = lax.map(pair, jnp.arange(spec.population_size // 2, dtype=jnp.int32))
    return predicted, found.T


def correlation(left: jax.Array, right: jax.Array) -> jax.Array:
    """The correlation of two vectors around zero, over the entries that both have; else NaN."""
    both = jnp.isfinite(left) & jnp.isfinite(right)
    left, right = (jnp.where(both, vector, 0) for vector in (left, right))
    # Each by its own size first: the squares of small numbers would be zero.
    left, right = (vector / jnp.max(jnp.abs(vector)) for vector in (left, right))
    return jnp.sum(left * right) / jnp.sqrt(jnp.sum(left**2) * jnp.sum(right**2))
