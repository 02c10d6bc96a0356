"""What XLA would do, and what forces it to do otherwise; each trick has one name, and a test.

Each docstring says what XLA would do, what the function forces, and where that was seen.
`tests/xla_test.py` compiles a program with and without each of them: one whose test finds no
difference any more can go.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from egd_optax._jax import custom_partitioning

T = TypeVar("T")
C = TypeVar("C")


def at_most_once(pred: jax.Array, fn: Callable[..., C], carry: C, *operands: Any) -> C:
    """Returns `fn(carry, *operands)` where `pred` holds, else `carry`: a branch that stays one.

    Under `jax.vmap` a `lax.cond` computes both branches on every step and selects, and XLA may
    copy what both return. A loop that runs at most once stays a loop, which runs where it is due
    for any of the batch; it passes its carry through in place, and nothing is fused across its
    boundary, so that the same body gives the same bits wherever it stands. Seen on CPU, GPU and
    TPU with jax 0.10.2.

    Args:
        pred: bool `[]`.
        fn: maps the carry to a carry of the same structure, shapes and dtypes.
        carry: pytree of arrays.
        *operands: pytrees of arrays. What `fn` computes from these stays inside; what it
            computes from captured arrays alone XLA moves out of the loop, taken or not.

    Returns:
        A pytree like `carry`.
    """

    def body(_: jax.Array, value: C) -> C:
        return fn(*lax.optimization_barrier((value, *operands)))

    trips = pred.astype(jnp.int32)
    # From zeros like it: under vmap on a mesh of explicit axes a plain 0 has no mesh.
    result: C = lax.fori_loop(jnp.zeros_like(trips), trips, body, carry)
    return result


def drawn_into(buffer: C, index: jax.Array, on: jax.Array, fn: Callable[[jax.Array], C]) -> C:
    """Returns `fn(index)` in the memory of `buffer` where `on` holds, else the buffer.

    `at_most_once` does not hold what never reads its carry: XLA drops the unread operand of its
    barrier, and moves the rest out of the loop, so that it is computed where `on` is false too.
    A loop over the one index, or over none, keeps it inside, for it depends on the index. Seen on
    CPU with jax 0.10.2.
    """
    result: C = lax.fori_loop(index, index + on.astype(index.dtype), lambda at, _: fn(at), buffer)
    return result


def computed_once(witness: jax.Array, fn: Callable[..., C], *operands: Any) -> C:
    """Returns `fn(*operands)`, never computed anew where it is used.

    XLA fuses a normal number into what uses it, and computes it again for every entry of an outer
    product; and it compiles the generator anew for every leaf that takes its part of a draw. It
    does not fuse across the boundary of a loop, so that the number is drawn once. Seen on CPU with
    jax 0.10.2.

    Args:
        witness: see `impossible`.
        fn: maps the operands to a pytree of arrays.
        *operands: pytrees of arrays.
    """
    traced = jax.jit(fn)  # once, for its shapes and for what it computes
    blank = jax.tree.map(unwritten, traced(*operands))  # nothing is computed
    pred = ~impossible(witness)  # always, which XLA cannot know
    result: C = at_most_once(pred, lambda _, *values: traced(*values), blank, *operands)
    return result


def whole_on_each_device(tree: T, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None) -> T:
    """The same arrays, each device of a mesh with all of them.

    XLA divides the results of a loop as it sees fit, and sends around what its users want to
    have otherwise: factors of low-rank noise, of which every device can draw all. Seen compiled
    ahead of time for a TPU with jax 0.10.2; `aot/plan_test.py` counts what is sent.

    Args:
        tree: pytree of arrays.
        mesh: a mesh of axes that XLA divides over; of any other, or None, nothing is known or
            to be done.
    """
    if mesh is None or mesh.explicit_axes or mesh.manual_axes:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    result: T = jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, sharding), tree)
    return result


def kept_inside(fixed: T, varying: C) -> tuple[T, C]:
    """The same two, so that what a loop's body computes of the first stays in the body.

    XLA moves what is the same in every trip out of the loop, and holds it beside all else: a
    parent that is parameters plus updates would be a copy. A value that differs from trip to
    trip ties it to the body. Both results must be used: an operand of a barrier that nobody
    reads is dropped. Seen on CPU, GPU and TPU with jax 0.10.2.
    """
    result: tuple[T, C] = lax.optimization_barrier((fixed, varying))
    return result


def fetched_after(value: T, previous: C) -> tuple[T, C]:
    """The same two, the first not before the second: one leaf on its way from the host at a time.

    XLA:GPU starts all transfers of a program part as early as it can, and holds all that they
    bring. The barrier makes a transfer wait for what was done with the one before. Seen on an
    H100, compiled ahead of time with jax 0.10.2; `aot/paging_test.py` reads the memory.
    """
    result: tuple[T, C] = lax.optimization_barrier((value, previous))
    return result


def impossible(witness: jax.Array) -> jax.Array:
    """False, bool `[]`, which XLA cannot know.

    XLA removes a branch or a loop whose outcome it can compute, and makes a buffer of zeros as
    early as it can. A branch that depends on this stays, and a buffer that does is not made
    before the witness is known. Seen on CPU and GPU with jax 0.10.2.

    Args:
        witness: an integer that is never negative, or numbers that are never NaN.
    """
    if jnp.issubdtype(witness.dtype, jnp.integer):
        return jnp.any(witness < 0)
    return jnp.any(jnp.isnan(witness))


def held_in_a_branch(witness: jax.Array, fn: Callable[[], C], instead: Callable[[], C]) -> C:
    """Returns `fn()`, in a conditional that always takes it, which XLA cannot know.

    XLA moves what is the same in every trip of a loop out of all loops around it: the draws of a
    cycle to where idle steps pay for them. It moves nothing out of a conditional. `fn` is the
    second branch, for XLA lays out the first one first, and keeps alive what that returns. Seen
    on CPU with jax 0.10.2, the order of the branches on a TPU.

    Args:
        witness: see `impossible`.
        fn: makes the result.
        instead: makes another of the same structure, shapes and dtypes; never runs.
    """
    result: C = lax.cond(impossible(witness), instead, fn)
    return result


def rounded_to(wide: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The values in the precision of a dtype, in the dtype that they have; stands before a cast.

    XLA may leave out a cast to fewer digits that another one undoes, so that a member would be
    evaluated with digits that it does not have. It never leaves out `reduce_precision`. Seen on
    GPU and TPU with jax 0.10.2; CPU keeps the casts.
    """
    return _with_digits(wide, jnp.finfo(dtype).nmant)


def rounded_to_add(product: jax.Array) -> jax.Array:
    """A product with a digit less than its dtype has, to be added to something.

    XLA multiplies and adds in one operation, with one rounding, in some places and not in
    others. A product that is rounded on purpose is the same number in both. Seen on CPU and GPU
    with jax 0.10.2.
    """
    return _with_digits(product, jnp.finfo(product.dtype).nmant - 1)


def rounded_to_multiply(factor: jax.Array) -> jax.Array:
    """A factor with half of the digits of its dtype: the product of two is exact.

    For the reason of `rounded_to_add`, where to round every entry of a product would cost more
    than to round its factors. Digits count without the leading one, which is not stored: 11 + 1
    of the 23 + 1 of float32.
    """
    return _with_digits(factor, (jnp.finfo(factor.dtype).nmant - 1) // 2)


def _with_digits(values: jax.Array, digits: int) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        return lax.complex(_with_digits(values.real, digits), _with_digits(values.imag, digits))
    finfo = jnp.finfo(values.dtype)
    if digits >= finfo.nmant:
        return values
    return lax.reduce_precision(values, exponent_bits=finfo.nexp, mantissa_bits=digits)


def unwritten(leaf: jax.Array) -> jax.Array:
    """A buffer like a leaf, divided over devices as it is, never to be read before it is written.

    A page in host memory starts as this: zeros would be made on the device and moved there.
    XLA:GPU does not divide a buffer that comes from nothing: it would allocate all of it on
    every device and move a part. There the buffer is made of a leaf, by a partitioning of its
    own; XLA:TPU divides the plain form, and does not take the other. Seen compiled ahead of
    time with jax 0.10.2.

    Args:
        leaf: any array; its values are not used.

    Returns:
        An array of its shape and dtype.
    """
    like = jax.typeof(leaf)
    if jax.sharding.get_abstract_mesh().manual_axes:  # zeros vary over them as the leaf does
        return jnp.zeros_like(leaf)
    if like.sharding.mesh.explicit_axes:
        explicit: jax.Array = lax.empty(like.shape, like.dtype, out_sharding=like.sharding)
        return explicit
    buffer: jax.Array = lax.platform_dependent(
        leaf, cuda=_divided, rocm=_divided, default=_undivided
    )
    return buffer


def _empty_like(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = lax.empty(leaf.shape, leaf.dtype)
    return buffer


# Under `jax.vmap` JAX gives what `lax.empty` returns the mapped axis, and with it all that is put
# there, also where the leaf has none; and it knows no rule for a partitioning of one's own.
@jax.custom_batching.custom_vmap
def _undivided(leaf: jax.Array) -> jax.Array:
    return _empty_like(leaf)


@_undivided.def_vmap
def _undivided_batched(_: int, batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
    return _undivided(leaf), batched[0]


@jax.custom_batching.custom_vmap
def _divided(leaf: jax.Array) -> jax.Array:
    buffer: jax.Array = _empty_of_shard(leaf)
    return buffer


@_divided.def_vmap
def _divided_batched(_: int, batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
    return _divided(leaf), batched[0]


_empty_of_shard = custom_partitioning(_empty_like)


def _partition(
    mesh: Any, leaves: tuple[Any], result: Any
) -> tuple[Any, Callable[[jax.Array], jax.Array], Any, tuple[Any]]:
    del result
    sharding = leaves[0].sharding
    return mesh, _empty_like, sharding, (sharding,)


_empty_of_shard.def_partition(
    partition=_partition,
    infer_sharding_from_operands=lambda mesh, leaves, result: leaves[0].sharding,
    sharding_rule="... -> ...",
)
