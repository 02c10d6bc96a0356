"""From a program to a Python function and back: called once for every evaluation that counts.

The call has effects for JAX, so that XLA neither drops it, nor repeats it, nor takes two for one.
In a program for a whole mesh the first device makes it, with all of the arrays, and the others are
told; in the program of one device among those of a mapped axis, the first of those that would all
make the same call.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._jax import io_callback
from egd_optax.callback.devices import axes_of, cast_to_varying, on_mesh
from egd_optax.callback.errors import failed_with, raised
from egd_optax.callback.form import Form, is_array, plain
from egd_optax.callback.pieces import PIECE, TICKET, opened, sent, taken
from egd_optax.core.counted import counts

# Maps which evaluations count, bool `[n]`, the arrays of all of them by position, and the form of
# the arguments to the results, `[n, ...]` each.
Answer = Callable[[np.ndarray, dict[int, np.ndarray], Form], list[np.ndarray]]
# The shapes and dtypes of the results of one evaluation, asked for where it is traced.
Shapes = Callable[[], list[jax.ShapeDtypeStruct]]


def to_python(answer: Answer, shapes: Shapes) -> Callable[[Any], list[jax.Array]]:
    """Returns a function from arguments to numbers that Python answers with.

    Args:
        answer: called on the host. Evaluations under `jax.vmap` come together.
        shapes: of its results, no bools among them; the first one is a float.

    Returns:
        A function of a pytree of arrays and other objects, to be traced.
    """
    calls = _calls(answer, shapes)

    @jax.custom_batching.custom_vmap
    def evaluate(counted: jax.Array, arrays: dict[int, jax.Array], form: Form) -> list[jax.Array]:
        return calls(counted, arrays, form)

    @evaluate.def_vmap
    def many(
        size: int, batched: Any, counted: jax.Array, arrays: dict[int, jax.Array], form: Form
    ) -> tuple[list[jax.Array], list[bool]]:
        def all_own(leaf: jax.Array, is_batched: bool, is_own: bool) -> jax.Array:
            if not is_own:  # then it is batched
                leaf = leaf[:, None]
            elif not is_batched:
                leaf = leaf[None]
            each = jnp.broadcast_to(leaf, (size, each_size, *leaf.shape[2:]))
            return each.reshape(-1, *leaf.shape[2:])

        each_size = counted.shape[-1]
        are_batched = batched[1]
        own = form.own | {at for at, is_batched in are_batched.items() if is_batched}
        spread = {
            at: all_own(leaf, are_batched[at], at in form.own) if at in own else leaf
            for at, leaf in arrays.items()
        }
        whether = all_own(counted, batched[0], True)
        results = evaluate(whether, spread, dataclasses.replace(form, own=own))
        divided = [leaf.reshape(size, each_size, *leaf.shape[1:]) for leaf in results]
        return divided, [True] * len(divided)

    def call(args: Any) -> list[jax.Array]:
        leaves, structure = jax.tree.flatten(args)
        arrays = {at: plain(leaf) for at, leaf in enumerate(leaves) if is_array(leaf)}
        others = tuple((at, leaf) for at, leaf in enumerate(leaves) if at not in arrays)
        varying, alike = axes_of(arrays)
        first = counts()
        for name in alike:
            first &= lax.axis_index(name) == 0

        def of_all(leaf: jax.Array) -> jax.Array:
            value = cast_to_varying(leaf.reshape(leaf.shape[1:]), varying)
            if not alike:
                return value
            told: jax.Array = lax.psum(jnp.where(first, value, jnp.zeros_like(value)), alike)
            return told

        return [of_all(leaf) for leaf in evaluate(first[None], arrays, Form(structure, others))]

    return call


def _calls(answer: Answer, shapes: Shapes) -> Callable[..., list[jax.Array]]:
    """The call, with arrays as they are or, where XLA:CPU needs that, in pieces."""

    def at_once(counted: Any, arrays: dict[int, Any], form: Form) -> list[np.ndarray]:
        return answer(np.asarray(counted), {at: np.asarray(x) for at, x in arrays.items()}, form)

    def kept_at_once(
        counted: Any, arrays: dict[int, Any], form: Form
    ) -> tuple[list[np.ndarray], np.int32]:
        try:
            return at_once(counted, arrays, form), np.int32(0)
        except Exception as error:
            # Of no use, for what comes next raises.
            return [np.zeros((*counted.shape, *x.shape), x.dtype) for x in shapes()], failed_with(
                error
            )

    def at_last(
        ticket: Any, counted: Any, arrays: dict[int, Any], sizes: dict[int, Any], form: Form
    ) -> tuple[list[np.ndarray], np.int32]:
        pieces = taken(int(ticket))
        large = {at: np.concatenate(pieces[at]).reshape(sizes[at]) for at in sizes}
        for leaf in large.values():
            leaf.setflags(write=False)  # as are those that come at once
        return kept_at_once(counted, {**arrays, **large}, form)

    def call(counted: jax.Array, arrays: dict[int, jax.Array], form: Form) -> list[jax.Array]:
        result = [jax.ShapeDtypeStruct((*counted.shape, *x.shape), x.dtype) for x in shapes()]
        large = [at for at, leaf in arrays.items() if leaf.nbytes > PIECE]

        def whole(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            return io_callback(at_once, result, counted, arrays, form)

        def in_pieces(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            ticket = io_callback(opened, TICKET)
            for at in large:
                ticket = sent(ticket, at, arrays[at])
            small = {at: leaf for at, leaf in arrays.items() if at not in large}
            sizes = {at: np.array(arrays[at].shape, np.int32) for at in large}
            return io_callback(at_last, (result, TICKET), ticket, counted, small, sizes, form)

        def on_cpu(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            if large:
                found, failed = in_pieces(counted, arrays)
            else:
                found, failed = io_callback(kept_at_once, (result, TICKET), counted, arrays, form)
            return lax.cond(failed > 0, raised, lambda found, _: found, found, failed)

        found = lax.platform_dependent(counted, arrays, cpu=on_cpu, default=whole)
        return [on_mesh(leaf) for leaf in found]

    return call
