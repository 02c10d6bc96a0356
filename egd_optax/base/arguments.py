"""Arguments of `update`: which function takes which of them, and which parts of them are data."""

from collections.abc import Callable, Iterable, Mapping
import difflib
import functools
import inspect
from typing import Any, TypeVar

import jax
import numpy as np

from egd_optax._advice import advice_on_gaps

T = TypeVar("T")

# Leaves that become data of a program; of the parameters, numbers do so too.
ARRAYS = jax.Array | np.ndarray
NUMBERS = ARRAYS | np.number | float | int | complex

# Behind the parameters of an objective; behind updates, state and parameters of an optimizer.
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Names that differ by two letters of six in another order, and less, count as misspelt.
_ALIKE = 0.8


def taken_by(
    fn: Callable[..., Any],
    given: Mapping[str, Any],
    added: Mapping[str, Any] | None = None,
    *,
    behind: int = 1,
) -> dict[str, Any]:
    """Selects the arguments that a function takes.

    Args:
        fn: any callable: also a method, a `functools.partial`, a module with `__call__`.
        given: the arguments that the caller of `update` gave. A function with `**kwargs` gets all
            of them, another one those that its signature names.
        added: arguments that the library adds. A function gets those that its signature names.
        behind: how many arguments come first, by position.
    """
    names, takes_all = _signature(fn, behind)
    own = {name: value for name, value in (added or {}).items() if name in names}
    return own | {name: value for name, value in given.items() if takes_all or name in names}


def for_line_search(
    fn: Callable[..., Any], given: Mapping[str, Any], added: Mapping[str, Any], *, has_aux: bool
) -> Callable[..., Any]:
    """The objective for a base that evaluates it, for example a line search of optax.

    Line searches refuse arguments that the signature of the objective does not name. The returned
    function names all, and passes on those that the objective takes. With `has_aux` the objective
    returns a tuple, and the function returns the first part of it, the fitness.
    """

    @functools.wraps(fn)
    def value_fn(params: Any, **kwargs: Any) -> Any:
        # A base that evaluates is the first to do so: its error would come before a cycle's.
        with advice_on_gaps(params):
            value = fn(params, **taken_by(fn, kwargs, added))
        return value[0] if has_aux else value

    kinds = inspect.Parameter
    first = kinds("params", kinds.POSITIONAL_ONLY)
    rest = [kinds(name, kinds.KEYWORD_ONLY) for name in given]
    value_fn.__signature__ = inspect.Signature([first, *rest])  # type: ignore[attr-defined]
    return value_fn


def check_reserved(given: Iterable[str], fns: Iterable[Callable[..., Any]]) -> None:
    """Refuses an argument that would hide one of the library's.

    Raises:
        TypeError: a function names an argument that both would pass.
    """
    named = {name for fn in fns for name in _signature(fn, behind=1)[0]}
    for name in sorted({"generation", "base_state"} & named & set(given)):
        raise TypeError(
            f"`{name}` must not be passed to `update`: a function that names it gets that of the "
            f"cycle. Rename yours, `my_{name}` for example, there and in the function."
        )


def check_spelling(given: Iterable[str], fns: Iterable[Callable[..., Any]]) -> None:
    """Refuses an argument that nobody takes and that is spelled nearly as one that is missing.

    Other unknown arguments pass. Optax hands all extra arguments to all parts of a chain, and
    expects an optimizer to ignore those that it does not know.

    Args:
        given: the names of the extra arguments.
        fns: the functions that take them.

    Raises:
        TypeError: a name is misspelt.
    """
    signatures = [_signature(fn, behind=1) for fn in fns]
    if any(takes_all for _, takes_all in signatures):
        return
    named = {name for names, _ in signatures for name in names} | _OF_UPDATE
    for name in set(given) - named:
        meant = difflib.get_close_matches(name, named - set(given), 1, _ALIKE)
        if meant:
            raise TypeError(
                f"`{name}` must be an argument that `value_fn` or `update` takes, got one that "
                f"nobody does: did you mean `{meant[0]}`?"
            )


def arrays_of(tree: Any, kind: Any = ARRAYS) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and what puts others in their places; all else stays where it is."""
    leaves, treedef = jax.tree.flatten(tree)

    def with_arrays(arrays: list[Any]) -> Any:
        waiting = iter(arrays)
        filled = [next(waiting) if isinstance(leaf, kind) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, filled)

    return [leaf for leaf in leaves if isinstance(leaf, kind)], with_arrays


def shapes_of(fn: Callable[..., T], *args: Any) -> T:
    """The shapes of the arrays in what a function returns, which is not made; all else as it is."""
    made: list[Callable[[list[Any]], T]] = []

    def arrays(*args: Any) -> list[Any]:
        found, with_arrays = arrays_of(fn(*args), NUMBERS)
        made.append(with_arrays)
        return found

    shapes = jax.eval_shape(arrays, *args)
    return made[0](shapes)


_OF_UPDATE = {"value_fn", "accept_value_fn", "base_value_fn", "evolve"}


def _signature(fn: Callable[..., Any], behind: int) -> tuple[set[str], bool]:
    """The names of the arguments behind the first ones, and whether it takes any others."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # of some functions in C it is not known
        return set(), False
    takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
    positional = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.KEYWORD_ONLY)]
    first = {one.name for one in positional[:behind]}
    names = {one.name for one in parameters if one.kind in _BY_NAME}
    return names - first, takes_all
