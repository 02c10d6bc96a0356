"""Tricks on the compiler: each has one name, and a test that shows what it changes.

Each docstring says what XLA would do, what the function forces, and where that was seen.
`tests/xla_test.py` compiles a program with and without each of them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

T = TypeVar("T")
C = TypeVar("C")


def barrier(tree: T) -> T:
    """Returns the same arrays; XLA moves nothing across.

    If some arrays vary over a manual axis, one barrier for all would make all of them vary. So each
    kind gets a separate barrier. Seen with `check_vma=True`, jax 0.10.2. An array that is there
    twice passes once: XLA:TPU would hold a copy of the second in bfloat16, if nobody reads it.
    Seen compiled for a TPU v5e with jax 0.10.2.
    """
    leaves, treedef = jax.tree.flatten(tree)
    kinds: dict[Any, dict[int, Any]] = {}
    for leaf in leaves:
        kinds.setdefault(manual_axis_type(leaf), {})[id(leaf)] = leaf
    fixed: dict[int, Any] = {}
    for different in kinds.values():
        fixed.update(zip(different, lax.optimization_barrier([*different.values()]), strict=True))
    result: T = jax.tree.unflatten(treedef, [fixed[id(leaf)] for leaf in leaves])
    return result


def manual_axis_type(leaf: Any) -> Any:
    """The manual axes that an array varies over, in JAX's own form; None in older versions."""
    return getattr(jax.typeof(leaf), "manual_axis_type", None)


def run_if(pred: jax.Array, fn: Callable[..., C], carry: C, *operands: Any) -> C:
    """Returns `fn(carry, *operands)` if `pred` holds, else `carry`, in place.

    A `lax.cond` copies what it passes on, and `jax.vmap` turns it into a select that computes both
    branches. A loop of zero trips or one stays a loop and passes its carry on in place. XLA fuses
    nothing across its boundary, so the same body rounds in the same way wherever it is. Seen on
    CPU, GPU and TPU with jax 0.10.2.

    Args:
        pred: bool `[]`.
        fn: maps the carry to a carry of the same structure, shapes and dtypes.
        carry: pytree of arrays.
        *operands: pytrees of arrays. XLA moves out of the loop what `fn` computes from captured
            arrays alone; what it computes from the operands stays inside.
    """

    def body(_: jax.Array, value: C) -> C:
        return fn(*barrier((value, *operands)))

    trips = pred.astype(jnp.int32)
    # From zeros like it: under vmap on a mesh of explicit axes a plain 0 has no mesh.
    result: C = lax.fori_loop(jnp.zeros_like(trips), trips, body, carry)
    return result


def loop(
    first: jax.typing.ArrayLike,
    stop: jax.typing.ArrayLike,
    body: Callable[[jax.Array, C], C],
    carry: C,
) -> C:
    """Returns `lax.fori_loop(first, stop, body, carry)`, with an index that is int32 `[]`.

    Under `jax.disable_jit` JAX passes a Python int.
    """

    def trip(index: Any, carry: C) -> C:
        return body(jnp.asarray(index, jnp.int32), carry)

    result: C = lax.fori_loop(jnp.int32(first), jnp.int32(stop), trip, carry)
    return result


def write_if(pred: jax.Array, index: jax.Array, fn: Callable[[jax.Array], C], buffer: C) -> C:
    """Returns `fn(index)` in the memory of `buffer` if `pred` holds, else `buffer`.

    `run_if` does not hold a computation inside that never reads its carry. XLA drops the operand of
    a barrier that nobody reads, and moves the rest out of the loop. A loop over the one index, or
    over none, holds it, for `fn` depends on the index. Seen on CPU with jax 0.10.2.
    """
    return loop(index, index + pred.astype(index.dtype), lambda index, _: fn(index), buffer)


def no_hoist(fixed: T, varying: C) -> tuple[T, C]:
    """Returns both arguments; results of the first are computed in the body, on each trip.

    XLA moves computations that are the same in every trip out of the loop, and holds their results.
    A value that differs from trip to trip ties them to the body. Both results must be used: XLA
    drops the operand of a barrier that nobody reads. Seen on CPU, GPU and TPU with jax 0.10.2.
    """
    result: tuple[T, C] = barrier((fixed, varying))
    return result


def fetch_after(value: T, previous: C) -> tuple[T, C]:
    """Returns both arguments, the first not before the second.

    XLA:GPU starts all transfers from the host as early as it can, and holds all that they bring.
    The barrier makes a transfer wait until the one before was used. Seen on an H100,
    compiled ahead of time with jax 0.10.2; `aot/paging_test.py` reads the memory.
    """
    result: tuple[T, C] = barrier((value, previous))
    return result


def opaque_false(witness: jax.Array) -> jax.Array:
    """Returns False, bool `[]`, which XLA cannot know.

    XLA removes a branch or a loop whose outcome it can compute, and makes a buffer of zeros as
    early as it can. A branch that depends on this is kept, and a buffer that does is not made
    before the witness is known. Seen on CPU and GPU with jax 0.10.2.

    Args:
        witness: integers that are never negative, or numbers that are never NaN.
    """
    if jnp.issubdtype(witness.dtype, jnp.integer):
        return jnp.any(witness < 0)
    return jnp.any(jnp.isnan(witness))


def hold_in_branch(witness: jax.Array, fn: Callable[[], C], instead: Callable[[], C]) -> C:
    """Returns `fn()`, out of a conditional that always takes it, which XLA cannot know.

    XLA moves computations that are the same in every trip of a loop out of all loops around it. It
    moves nothing out of a conditional. `fn` is the second branch: XLA lays out the first one first,
    and keeps its result alive. Seen on CPU with jax 0.10.2, the order of the branches on a TPU.

    Args:
        witness: see `opaque_false`.
        fn: makes the result.
        instead: makes another one of the same structure, shapes and dtypes; never runs.
    """
    result: C = lax.cond(opaque_false(witness), instead, fn)
    return result


def in_memory_of(buffer: C, witness: jax.Array, fn: Callable[..., C], *operands: Any) -> C:
    """Returns `fn(buffer, *operands)`, in the memory of the buffer.

    XLA:TPU would allocate the result next to a buffer that a loop carries, although nobody reads
    that any more. A loop of one trip, which XLA cannot know, carries the buffer in place. Seen
    compiled for a TPU v5e with jax 0.10.2.

    Args:
        buffer: pytree of arrays.
        witness: see `opaque_false`.
        fn: makes arrays of the same structure, shapes and dtypes.
        *operands: see `run_if`.
    """
    return run_if(~opaque_false(witness), fn, buffer, *operands)


def zeros_in(buffer: jax.Array, witness: jax.Array, dtype: Any) -> jax.Array:
    """Returns zeros of a dtype, made once the witness is known, in the memory of a dead buffer.

    XLA would make plain zeros early, and hold them. Seen on CPU and GPU with jax 0.10.2.
    """
    if buffer.dtype == dtype:
        return in_memory_of(buffer, witness, jnp.zeros_like)
    return zeros_after(buffer, witness, dtype)


def zeros_after(like: jax.Array, witness: jax.Array, dtype: Any) -> jax.Array:
    """Returns zeros of a dtype and of the shape of an array, made once the witness is known."""
    return jnp.zeros_like(like, dtype) + opaque_false(witness).astype(dtype)


def round_to(wide: jax.Array, dtype: Any) -> jax.Array:
    """Returns the values in the precision of a dtype, in the dtype that they have.

    XLA may leave out a cast to fewer digits that another cast undoes; it never leaves out
    `reduce_precision`. Seen on GPU and TPU with jax 0.10.2; CPU keeps the casts.
    """
    return _with_digits(wide, jnp.finfo(dtype).nmant)


def round_for_fma(product: jax.Array) -> jax.Array:
    """Returns a product with a digit less than its dtype has.

    XLA multiplies and adds in one operation, with one rounding, in some places and not in others.
    A rounded product gives the same sum in both. Seen on CPU and GPU with jax 0.10.2.
    """
    return _with_digits(product, jnp.finfo(product.dtype).nmant - 1)


def round_for_exact_product(factor: jax.Array) -> jax.Array:
    """Returns a factor with half of the digits of its dtype, so that products of two are exact.

    Rounding the factors costs less than rounding each entry of an outer product, see
    `round_for_fma`.
    """
    return _with_digits(factor, (jnp.finfo(factor.dtype).nmant - 1) // 2)


def by_parts(fn: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns `fn(*arrays)`, of complex arrays for their real and imaginary parts apart.

    XLA simplifies p + (t - p) to t if these are complex, and never if they are real. The rounding
    of the sum would be lost. Seen on CPU with jax 0.10.2.

    Args:
        fn: adds or subtracts.
        *arrays: all complex or all real.
    """
    if not jnp.issubdtype(arrays[0].dtype, jnp.complexfloating):
        return fn(*arrays)
    return lax.complex(fn(*(a.real for a in arrays)), fn(*(a.imag for a in arrays)))


def _with_digits(values: jax.Array, digits: int) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        return lax.complex(_with_digits(values.real, digits), _with_digits(values.imag, digits))
    finfo = jnp.finfo(values.dtype)
    if digits >= finfo.nmant:
        return values
    return lax.reduce_precision(values, exponent_bits=finfo.nexp, mantissa_bits=digits)
