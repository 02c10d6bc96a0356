"""From a program to a Python function and back: called once for every evaluation that counts.

The call has effects for JAX, so that XLA neither drops it, nor repeats it, nor takes two for one.
In a program for a whole mesh the first device makes it, with all of the arrays, and the others are
told; in the program of one device among those of a mapped axis, the first of those that would all
make the same call.
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

from egd_optax._cycle.counted import counts
from egd_optax._jax import buffer_callback, io_callback

# What of an array XLA:CPU hands over at a time, in bytes. JAX gives a callback arrays of its own,
# which XLA:CPU copies on a thread of the pool that programs run on, and where all threads wait for
# the callback, on several devices for example, never. Below 100 KiB it copies in place.
_PIECE = 96 * 1024


@dataclasses.dataclass(frozen=True)
class Form:
    """What the arguments of a call are but for their arrays.

    Attributes:
        structure: of all arguments.
        others: what is no array, by position.
        own: positions of the arrays of which each evaluation has its own.
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
        return isinstance(other, Form) and self._known() == other._known()

    def __hash__(self) -> int:
        return hash(self._known())

    def __repr__(self) -> str:
        # Programs outside of jit are known by it.
        return f"Form{self._known()}"


jax.tree_util.register_static(Form)
# Maps which evaluations count, bool `[n]`, the arrays of all of them by position, and the form of
# the arguments to the results, `[n, ...]` each.
Answer = Callable[[np.ndarray, dict[int, np.ndarray], Form], list[np.ndarray]]
# The shapes and dtypes of the results of one evaluation, asked for where it is traced.
Shapes = Callable[[], list[jax.ShapeDtypeStruct]]


def to_host(answer: Answer, shapes: Shapes) -> Callable[[Any], list[jax.Array]]:
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
        arrays = {at: _plain(leaf) for at, leaf in enumerate(leaves) if _is_array(leaf)}
        others = tuple((at, leaf) for at, leaf in enumerate(leaves) if at not in arrays)
        varying, alike = _axes_of(arrays)
        first = counts()
        for name in alike:
            first &= lax.axis_index(name) == 0

        def of_all(leaf: jax.Array) -> jax.Array:
            value = _cast_to_varying(leaf.reshape(leaf.shape[1:]), varying)
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
            return [np.zeros((*counted.shape, *x.shape), x.dtype) for x in shapes()], _failed(error)

    def at_last(
        ticket: Any, counted: Any, arrays: dict[int, Any], sizes: dict[int, Any], form: Form
    ) -> tuple[list[np.ndarray], np.int32]:
        pieces = _taken(int(ticket))
        large = {at: np.concatenate(pieces[at]).reshape(sizes[at]) for at in sizes}
        for leaf in large.values():
            leaf.setflags(write=False)  # as are those that come at once
        return kept_at_once(counted, {**arrays, **large}, form)

    def call(counted: jax.Array, arrays: dict[int, jax.Array], form: Form) -> list[jax.Array]:
        result = [jax.ShapeDtypeStruct((*counted.shape, *x.shape), x.dtype) for x in shapes()]
        large = [at for at, leaf in arrays.items() if leaf.nbytes > _PIECE]

        def whole(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            return io_callback(at_once, result, counted, arrays, form)

        def in_pieces(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            ticket = io_callback(_opened, _TICKET)
            for at in large:
                ticket = _sent(ticket, at, arrays[at])
            small = {at: leaf for at, leaf in arrays.items() if at not in large}
            sizes = {at: np.array(arrays[at].shape, np.int32) for at in large}
            return io_callback(at_last, (result, _TICKET), ticket, counted, small, sizes, form)

        def on_cpu(counted: jax.Array, arrays: dict[int, jax.Array]) -> Any:
            if large:
                found, failed = in_pieces(counted, arrays)
            else:
                found, failed = io_callback(kept_at_once, (result, _TICKET), counted, arrays, form)
            return lax.cond(failed > 0, _raised, lambda found, _: found, found, failed)

        found = lax.platform_dependent(counted, arrays, cpu=on_cpu, default=whole)
        return [_on_mesh(leaf) for leaf in found]

    return call


# Large arrays on CPU, piece by piece. A ticket tells the calls of several devices apart.

_TICKET = jax.ShapeDtypeStruct((), jnp.int32)
_TICKETS = itertools.count()
_WAITING: dict[int, dict[int, list[np.ndarray]]] = {}
_LOCK = threading.Lock()


def _opened() -> np.int32:
    with _LOCK:
        ticket = next(_TICKETS) % 2**31
        _WAITING[ticket] = {}
    return np.int32(ticket)


def _received(ticket: Any, at: Any, piece: Any) -> np.int32:
    with _LOCK:
        _WAITING[int(ticket)].setdefault(int(at), []).append(np.array(piece))
    return np.int32(ticket)


def _taken(ticket: int) -> dict[int, list[np.ndarray]]:
    with _LOCK:
        return _WAITING.pop(ticket)


def _sent(ticket: jax.Array, at: int, leaf: jax.Array) -> jax.Array:
    """The ticket, when all of the leaf was received: each piece waits for the one before."""
    flat = leaf.reshape(-1)
    size = _PIECE // flat.dtype.itemsize

    def send(ticket: jax.Array, piece: jax.Array) -> jax.Array:
        sent: jax.Array = io_callback(_received, _TICKET, ticket, np.int32(at), piece)
        return sent

    whole = flat.size // size
    ticket = lax.fori_loop(
        0,
        whole,
        lambda index, ticket: send(ticket, lax.dynamic_slice_in_dim(flat, index * size, size)),
        ticket,
    )
    return send(ticket, flat[whole * size :]) if whole * size < flat.size else ticket


# Errors on CPU. Where one device raises, the others wait for it until XLA ends the process: all
# that are told what it found raise together.

_ERRORS: dict[int, BaseException] = {}


def _failed(error: BaseException) -> np.int32:
    """The number of an error, from 1; the latest one is kept."""
    with _LOCK:
        number = next(_TICKETS) % 2**31 + 1
        _ERRORS.clear()
        _ERRORS[number] = error
    return np.int32(number)


def _raise(context: Any, out: Any, failed: Any) -> None:
    del context, out
    raise _ERRORS.get(int(np.asarray(failed)), RuntimeError("`fn` failed in another process."))


def _raised(found: list[jax.Array], failed: jax.Array) -> list[jax.Array]:
    """Raises on every device that comes here."""
    values, *others = found
    nothing = jax.ShapeDtypeStruct((), values.dtype)
    zero: jax.Array = buffer_callback(_raise, nothing)(failed)
    return [values + zero, *others]


def _axes_of(arrays: dict[int, jax.Array]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The manual axes along which the arrays differ, and those along which they are the same.

    Both are known where `jax.shard_map` checks it (`check_vma=True`); otherwise none of either.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    known = [name for name in manual if name in _varying(lax.axis_index(name))]
    differ: set[str] = set().union(*(_varying(leaf) for leaf in arrays.values()))
    return (
        tuple(name for name in known if name in differ),
        tuple(name for name in known if name not in differ),
    )


def _on_mesh(values: jax.Array) -> jax.Array:
    """The values, whole on every device of a mesh of explicit axes: JAX knows of no mesh there."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return values
    whole: jax.Array = jax.sharding.reshard(values, jax.sharding.PartitionSpec())
    return whole


def _cast_to_varying(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The value, said to differ along the axes: JAX takes what Python returns to be the same."""
    missing = tuple(name for name in axes if name not in _varying(value))
    return lax.pcast(value, missing, to="varying") if missing else value


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _plain(leaf: Any) -> jax.Array:
    """An array that NumPy has too: of a typed key its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf)


def _varying(value: jax.Array) -> frozenset[str]:
    """The manual axes along which a value is said to differ."""
    varying: frozenset[str] = jax.typeof(value).manual_axis_type.varying
    return varying
