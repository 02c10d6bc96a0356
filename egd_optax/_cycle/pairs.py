"""What a gradient predicts of mirrored pairs, and what their fitness says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax._cycle.arguments import taken_by
from egd_optax._cycle.fitness import fitness_dtype, own_fitness_of
from egd_optax._cycle.generation import members_of
from egd_optax._cycle.members import cycle_key, displaced, mirrored
from egd_optax._cycle.parent import aligned, snapshot, widened
from egd_optax._cycle.spec import CycleSpec


def differences_around(
    spec: CycleSpec,
    params: optax.Params,
    grads: optax.Updates,
    mutating: tuple[int, ...],
    functions: Sequence[Callable[..., Any]],
    extra_args: Mapping[str, Any],
    key_data: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Half the differences between the members of each pair, predicted and found.

    Args:
        spec: what members are made by, antithetic ones.
        params: what they are around.
        grads: the gradient there, a pytree like `params`.
        mutating: positions of the leaves that mutate.
        functions: the fitness, on some samples or others.
        extra_args: what these take beside parameters.
        key_data: uint32 `[2]`, the key of the run.

    Returns:
        What the gradient predicts, `[pairs]`, and what each fitness finds, `[fitness, pairs]`; NaN
        where one of the two members has no finite fitness. Costs two forward passes a pair and
        fitness, and a draw a pair.
    """
    cycle = jnp.int32(0)
    parent = snapshot(params, jax.tree.map(jnp.zeros_like, params), mutating, spec.noise, cycle)
    sigma = jnp.asarray(spec.sigma, fitness_dtype())
    members = members_of(spec, parent, cycle_key(key_data, cycle), sigma, cycle)
    genome = members.genome.leaves()
    fitness = [
        own_fitness_of(fn, parent, kwargs=taken_by(fn, extra_args), execution=spec.execution)
        for fn in functions
    ]
    by_leaf = aligned(grads, params)
    slopes = [widened(by_leaf[at]) for at in mutating]

    def pair(first: jax.Array) -> tuple[jax.Array, jax.Array]:
        deviation = members.deviation(members.drawn(first))
        ahead = members.genome.reached(displaced(genome, deviation))
        sides = [parent.own_leaves(side) for side in (ahead, mirrored(ahead, members.genome))]
        counts = jnp.bool_(True)
        found = jnp.stack(
            [(fn(sides[0], counts).value - fn(sides[1], counts).value) / 2 for fn in fitness]
        )
        pairs = zip(slopes, parent.wide_leaves(deviation), strict=True)
        # The derivative along a complex number is the real part of its product with the gradient.
        predicted = sum(jnp.sum(jnp.real(grad * by)) for grad, by in pairs)
        return jnp.asarray(predicted, found.dtype), jnp.where(jnp.isfinite(found), found, jnp.nan)

    firsts = jnp.arange(1, members.size, members.pair, dtype=jnp.int32)
    predicted, found = lax.map(pair, firsts)
    return predicted, found.T


def correlation(left: jax.Array, right: jax.Array) -> jax.Array:
    """The correlation of two vectors around zero, over the entries that both have; else NaN."""
    both = jnp.isfinite(left) & jnp.isfinite(right)
    left, right = (jnp.where(both, vector, 0) for vector in (left, right))
    # Each by its own size first: the squares of small numbers would be zero.
    left, right = (vector / jnp.max(jnp.abs(vector)) for vector in (left, right))
    return jnp.sum(left * right) / jnp.sqrt(jnp.sum(left**2) * jnp.sum(right**2))
