"""Auxiliary output: the aux that `value_fn` returns with the fitness.

The aux of parent, best member and child is kept, and that of all candidates is added up. Both are
done at once, so that a population holds as much aux as one member does. Only the numbers that
`Recombine.reads` asks for are kept of each member.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The aux that `value_fn` returns with the fitness: a pytree of arrays, or of shapes and dtypes.
Auxiliary = Any


class Aux(NamedTuple):
    """The aux that `value_fn` returned with the fitness; each a pytree like the argument `aux`.

    Dtypes below int32 and float32 are widened to these, booleans to 0 and 1, so that it adds up.

    Attributes:
        parent: the aux of the parent, in the first generation. Zero if it was not evaluated: its
            `parent_fitness` is then +inf.
        best: the aux of the best member, the parent included, in the last generation.
        child: the aux of the child, in the last generation. Zero if it was not evaluated.
        total: the sum over all evaluations of the cycle, those of `accept_value_fn` included.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, aux={"steps": 0})
        >>> def value_fn(params): return jnp.sum(params), {"steps": 200}
        >>> params = jnp.ones(3)
        >>> _, state = tx.update(params, tx.init(params), params, value_fn=value_fn)
        >>> int(state.info.aux.best["steps"]), int(state.info.aux.total["steps"])
        (200, 1800)
    """

    parent: Auxiliary
    best: Auxiliary
    child: Auxiliary
    total: Auxiliary


class Evaluated(NamedTuple):
    """The result of an evaluation.

    Attributes:
        value: the fitness.
        aux: the aux, None if there is none.
        read: the numbers that `Recombine.reads` returned, None if it asks for none.
    """

    value: jax.Array
    aux: Auxiliary = None
    read: Any = None


class Seen(NamedTuple):
    """The aux that is kept of a generation, as far as it was evaluated.

    Attributes:
        lowest: the fitness of the member that `aux.best` came with, `[]`; +inf before the first.
        aux: the aux that is kept.
        read: the numbers that recombination reads of each member, `[size, ...]`; zeros before.
    """

    lowest: jax.Array
    aux: Aux
    read: Any


def shapes_of(example: Auxiliary) -> Auxiliary:
    """The shapes and dtypes that are kept of something like an example."""

    def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
        least = jnp.float32 if jnp.issubdtype(dtype, jnp.inexact) else jnp.int32
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.promote_types(dtype, least))

    return jax.tree.map(shape_of, example)


def split_off(
    result: Any,
    like: Auxiliary,
    as_array: Callable[[Any], Any],
    *,
    name: str,
    advice: str,
    casting: Literal["safe", "same_kind"],
    members: tuple[int, ...] = (),
) -> tuple[Any, list[Any]]:
    """Splits a result into the fitness and the leaves of the aux.

    Raises an error if the leaves are not like an example.

    Args:
        result: the value that a function returned.
        like: shapes and dtypes of the aux that must come.
        as_array: makes an array of a leaf.
        name: of the function.
        advice: which example to pass, for the message.
        casting: how a leaf may be cast to its dtype, see `numpy.can_cast`.
        members: the leading axes of each leaf.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"`{name}` must return (fitness, aux) where `aux` is given, got {result!r}: return "
            "both, or leave `aux` out."
        )
    value, beside = result
    must = f"`aux` must be like what `{name}` returns beside the fitness, got"
    found: Any = jax.tree.structure(beside)
    expected: Any = jax.tree.structure(like)
    if found != expected:
        raise ValueError(f"{must} {expected} for {found}: {advice}.")
    leaves = [as_array(leaf) for leaf in jax.tree.leaves(beside)]
    for leaf, of in zip(leaves, jax.tree.leaves(like), strict=True):
        shape = (*members, *of.shape)
        if leaf.shape != shape or not np.can_cast(leaf.dtype, of.dtype, casting):
            raise ValueError(
                f"{must} {of.dtype} of shape {shape} for {leaf.dtype} of shape {leaf.shape}: "
                f"{advice}."
            )
    return value, leaves


def nothing_kept(shapes: Auxiliary) -> Aux | None:
    """The aux before the first evaluation, zeros; None if none is kept. All buffers differ."""
    if shapes is None:
        return None
    zeros = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes) for _ in range(4))
    return Aux(*zeros)


def nothing_seen(
    shapes: Auxiliary, dtype: jnp.dtype, reads: Callable[[Any], Any], size: int
) -> Seen | None:
    """The aux before the first evaluation.

    Args:
        shapes: shapes and dtypes of the aux of a member; None if there is none.
        dtype: that of the fitness.
        reads: see `Recombine.reads`.
        size: the number of members, the parent included.
    """
    kept = nothing_kept(shapes)
    if kept is None:
        return None
    read = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), jax.eval_shape(reads, shapes)
    )
    return Seen(jnp.full([], jnp.inf, dtype), kept, read)


def nothing_like(seen: Seen | None) -> Seen | None:
    """The aux before the first evaluation, of shapes and dtypes as in `seen`."""
    if seen is None:
        return None
    zeros: Seen = jax.tree.map(jnp.zeros_like, seen)
    return zeros._replace(lowest=jnp.full_like(seen.lowest, jnp.inf))


def after(
    seen: Seen | None, found: Evaluated, numbers: jax.Array, counts: jax.Array, size: int
) -> Seen | None:
    """The aux after some evaluations.

    Args:
        seen: before them; None if none is kept.
        found: their results, with a leading axis `[n]`.
        numbers: their candidates, int32 `[n]`. 0 is the parent, `size` the child, and `size + 1`
            the best member once more. Candidates above these are not kept.
        counts: which of them count, bool `[n]`.
        size: the number of members, the parent included.
    """
    if seen is None:
        return None

    def kept(on: jax.Array, before: Auxiliary) -> Auxiliary:
        at = jnp.argmax(on)
        return jax.tree.map(lambda new, old: jnp.where(on[at], new[at], old), found.aux, before)

    def added(new: jax.Array, total: jax.Array) -> jax.Array:
        on = counts.reshape(-1, *(1,) * (new.ndim - 1))
        return total + jnp.sum(jnp.where(on, new, jnp.zeros_like(new)), axis=0)

    is_member = counts & (numbers < size)
    places = jnp.where(is_member, numbers, size)

    def put(all_: jax.Array, new: jax.Array) -> jax.Array:
        return all_.at[places].set(new, mode="drop")

    scores = jnp.where(is_member, found.value, jnp.inf)
    better = (jnp.arange(scores.size) == jnp.argmin(scores)) & (scores < seen.lowest)
    aux = Aux(
        parent=kept(counts & (numbers == 0), seen.aux.parent),
        best=kept(better | (counts & (numbers == size + 1)), seen.aux.best),
        child=kept(counts & (numbers == size), seen.aux.child),
        total=jax.tree.map(added, found.aux, seen.aux.total),
    )
    read = jax.tree.map(put, seen.read, found.read)
    return Seen(jnp.minimum(seen.lowest, jnp.min(scores)), aux, read)


def after_one(
    seen: Seen | None, found: Evaluated, number: jax.typing.ArrayLike, size: int
) -> Seen | None:
    """The aux after one evaluation, which counts."""
    one = jax.tree.map(lambda leaf: leaf[None], found)
    return after(seen, one, jnp.asarray(number, jnp.int32)[None], jnp.ones([1], jnp.bool_), size)


def added(seen: Seen | None, found: Evaluated) -> Seen | None:
    """The aux after one more evaluation, which only adds to the sum."""
    if seen is None:
        return None
    total = jax.tree.map(jnp.add, seen.aux.total, found.aux)
    return seen._replace(aux=seen.aux._replace(total=total))


def after_generation(before: Aux | None, found: Aux | None, index: jax.Array) -> Aux | None:
    """The aux of a cycle after a generation; the first generation has the index 0."""
    if before is None or found is None:
        return None
    return found._replace(
        parent=optax.tree.where(index == 0, found.parent, before.parent),
        total=jax.tree.map(jnp.add, before.total, found.total),
    )


def after_lanes(seen: Seen | None, lanes: Seen | None) -> Seen | None:
    """The aux after the members of all devices.

    Args:
        seen: before them; None if none is kept.
        lanes: what each device kept of its members, with a leading axis.
    """
    if seen is None:
        return None
    all_seen = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), seen, lanes)
    # The aux that only one device has seen is zero on the others.
    summed = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), all_seen)
    best = jnp.argmin(all_seen.lowest)
    aux = summed.aux._replace(best=jax.tree.map(lambda leaf: leaf[best], all_seen.aux.best))
    return Seen(all_seen.lowest[best], aux, summed.read)
