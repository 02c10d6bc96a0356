"""From a program to a Python function and back: called once for every evaluation that counts.

The call has effects for JAX, so that XLA neither drops it, nor repeats it, nor takes two for one.
In a program for a whole mesh the first device makes the call, with all of the arrays, and the
others get the result. Along a mapped axis some devices would make the same call: the first of these
makes it.
"""

from collections.abc import Callable
import dataclasses
import itertools
import threading
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from egd_optax._jax import buffer_callback, io_callback
from egd_optax.backend.devices import cast_to_varying, varying_axes
from egd_optax.callback.pieces import PIECE, TICKET, opened, sent, taken
from egd_optax.core.fitness import counts


def axes_of(arrays: dict[int, jax.Array]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The manual axes along which the arrays differ, and those along which they are the same.

    Both are known where `jax.shard_map` checks it (`check_vma=True`); otherwise none of either.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    known = [name for name in manual if name in varying_axes(lax.axis_index(name))]
    differ: set[str] = set().union(*(varying_axes(leaf) for leaf in arrays.values()))
    return (
        tuple(name for name in known if name in differ),
        tuple(name for name in known if name not in differ),
    )


def on_mesh(values: jax.Array) -> jax.Array:
    """The values, whole on every device of a mesh of explicit axes: JAX knows of no mesh there."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return values
    whole: jax.Array = jax.sharding.reshard(values, jax.sharding.PartitionSpec())
    return whole


@dataclasses.dataclass(frozen=True)
class Form:
    """The arguments of a call without their arrays.

    Attributes:
        structure: of all arguments.
        others: the leaves that are no arrays, by position.
        own: positions of the arrays that differ between evaluations, with a leading axis for these.
    """

    structure: Any
    others: tuple[tuple[int, Any], ...]
    own: frozenset[int] = frozenset()

    def filled(self, arrays: dict[int, Any]) -> Any:
        """The arguments with these arrays."""
        leaves = arrays | dict(self.others)
        return jax.tree.unflatten(self.structure, [leaves[at] for at in range(len(leaves))])

    def _known(self) -> tuple[Any, ...]:
        """Equal of forms that are the same; numbers and strings by value, else the objects."""
        others = tuple(
            (at, type(leaf), leaf if isinstance(leaf, bool | int | float | str) else id(leaf))
            for at, leaf in self.others
        )
        return self.structure, others, self.own

    def __eq__(self, other: object) -> bool:
        """Whether both forms hold the same."""
        return isinstance(other, Form) and self._known() == other._known()

    def __hash__(self) -> int:
        """Equal for equal forms."""
        return hash(self._known())

    def __repr__(self) -> str:
        """All that the form holds: programs outside of jit are known by it."""
        return f"Form{self._known()}"


jax.tree_util.register_static(Form)


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is passed to Python as an array."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def plain(leaf: Any) -> jax.Array:
    """An array that NumPy has too: of a typed key its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf)


_NUMBERS = itertools.count()
_ERRORS: dict[int, BaseException] = {}
_LOCK = threading.Lock()


def failed_with(error: BaseException) -> np.int32:
    """The number of an error, from 1; the latest one is kept."""
    with _LOCK:
        number = next(_NUMBERS) % 2**31 + 1
        _ERRORS.clear()
        _ERRORS[number] = error
    return np.int32(number)


def _raise(context: Any, out: Any, failed: Any) -> None:
    del context, out
    error = _ERRORS.get(int(np.asarray(failed)), RuntimeError("`fn` failed in another process."))
    if isinstance(error, Exception):
        raise error
    # `sys.exit` in `fn`: XLA passes on an `Exception` only.
    raise RuntimeError(f"`fn` of `host_value_fn` raised {error!r}.") from error


def raised_if(failed: jax.Array, found: list[jax.Array]) -> list[jax.Array]:
    """Returns what was found; raises on every device that comes here if a call failed, on CPU."""

    def raised(found: list[jax.Array], failed: jax.Array) -> list[jax.Array]:
        values, *others = found
        nothing = jax.ShapeDtypeStruct((), values.dtype)
        zero: jax.Array = buffer_callback(_raise, nothing)(failed)
        return [values + zero, *others]

    def on_cpu(found: list[jax.Array], failed: jax.Array) -> Any:
        return lax.cond(failed > 0, raised, lambda found, _: found, found, failed)

    result: list[jax.Array] = lax.platform_dependent(
        found, failed, cpu=on_cpu, default=lambda found, _: found
    )
    return result


# The results of a call, and the number of its error, int32 `[]`; zero if there is none.
Found = tuple[list[jax.Array], jax.Array]
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
    def evaluate(counted: jax.Array, arrays: dict[int, jax.Array], form: Form) -> Found:
        return calls(counted, arrays, form)

    @evaluate.def_vmap
    def many(
        size: int, batched: Any, counted: jax.Array, arrays: dict[int, jax.Array], form: Form
    ) -> tuple[Found, tuple[list[bool], bool]]:
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
        results, failed = evaluate(whether, spread, dataclasses.replace(form, own=own))
        divided = [leaf.reshape(size, each_size, *leaf.shape[1:]) for leaf in results]
        return (divided, failed), ([True] * len(divided), False)

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

        results, failed = evaluate(first[None], arrays, Form(structure, others))
        if axes := (*varying, *alike):
            # One device has members of its own, or calls for all: the others must not wait for it.
            failed = lax.pmax(cast_to_varying(failed, axes), axes)
        return raised_if(failed, [of_all(leaf) for leaf in results])

    return call


def _calls(answer: Answer, shapes: Shapes) -> Callable[..., Found]:
    """The call, with arrays as they are or, where XLA:CPU needs that, in pieces."""

    def at_once(counted: Any, arrays: dict[int, Any], form: Form) -> list[np.ndarray]:
        return answer(np.asarray(counted), {at: np.asarray(x) for at, x in arrays.items()}, form)

    def kept_at_once(
        counted: Any, arrays: dict[int, Any], form: Form
    ) -> tuple[list[np.ndarray], np.int32]:
        try:
            return at_once(counted, arrays, form), np.int32(0)
        except BaseException as error:  # raised on one device alone it would hang the others
            # Zeros without use, for the next step raises the error.
            return [np.zeros((*counted.shape, *x.shape), x.dtype) for x in shapes()], failed_with(
                error
            )

    def at_last(
        ticket: Any, counted: Any, arrays: dict[int, Any], sizes: dict[int, Any], form: Form
    ) -> tuple[list[np.ndarray], np.int32]:
        pieces = taken(int(ticket))
        # Of NumPy: to take numbers out of an array of JAX is a program, which could wait forever.
        own = {at: np.asarray(size) for at, size in sizes.items()}
        large = {at: np.concatenate(pieces[at]).reshape(size) for at, size in own.items()}
        for leaf in large.values():
            leaf.setflags(write=False)  # as are those that come at once
        return kept_at_once(counted, {**arrays, **large}, form)

    def call(counted: jax.Array, arrays: dict[int, jax.Array], form: Form) -> Found:
        result = [jax.ShapeDtypeStruct((*counted.shape, *x.shape), x.dtype) for x in shapes()]
        large = [at for at, leaf in arrays.items() if leaf.nbytes > PIECE]

        def whole(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            return io_callback(at_once, result, counted, arrays, form), jnp.int32(0)

        def in_pieces(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            ticket = io_callback(opened, TICKET)
            for at in large:
                ticket = sent(ticket, at, arrays[at])
            small = {at: leaf for at, leaf in arrays.items() if at not in large}
            sizes = {at: np.array(arrays[at].shape, np.int32) for at in large}
            return io_callback(at_last, (result, TICKET), ticket, counted, small, sizes, form)

        def on_cpu(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            if large:
                return in_pieces(counted, arrays)
            return io_callback(kept_at_once, (result, TICKET), counted, arrays, form)

        found, failed = lax.platform_dependent(counted, arrays, cpu=on_cpu, default=whole)
        return [on_mesh(leaf) for leaf in found], on_mesh(failed)

    return call
