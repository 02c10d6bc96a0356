"""Checks of arguments: each error names the argument, the value and the fix.

Only concrete Python and NumPy values are checked. Under `optax.inject_hyperparams`
numeric arguments arrive as arrays, whose values are not known when the step is traced.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Arguments that shape the program, or are functions that are no schedules of the step. Pass them to
# `optax.inject_hyperparams(egd, static_args=STATIC_ARGS)`, which would else trace or call them.
STATIC_ARGS = ("population_size", "generations", "mutable", "reset_base", "refine", "window")


def check_base(base: Any, name: str = "base") -> optax.GradientTransformationExtraArgs:
    """Returns the base optimizer, made to accept extra arguments."""
    if not (callable(getattr(base, "init", None)) and callable(getattr(base, "update", None))):
        hint = (
            "call it first, for example `evolve(optax.adam(1e-3))`"
            if callable(base)
            else "pass an optax optimizer, for example `optax.adam(1e-3)`"
        )
        raise TypeError(f"`{name}` must be an optax.GradientTransformation, got {base!r}: {hint}.")
    return optax.with_extra_args_support(base)


def check_size(name: str, value: Any, least: int = 1, why: str = "") -> int:
    """A Python int of at least `least` that shapes the program, so it may not be traced."""
    check_static(name, value, "int")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a Python int, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value!r}{why}.")
    return int(value)


def check_static(name: str, value: Any, kind: str) -> None:
    """No array: the program depends on the value."""
    if isinstance(value, jax.Array):
        fix = (
            "pass `static_args=egd_optax.wrappers.STATIC_ARGS`, and add your own static arguments"
            if name in STATIC_ARGS
            else "it belongs to an operator, whose settings are static: make another operator"
        )
        raise TypeError(
            f"`{name}` must be a Python {kind}, got {value!r}: under optax.inject_hyperparams "
            f"{fix}."
        )


def check_aux(aux: Any) -> None:
    """A pytree of arrays, or of their shapes and dtypes."""
    for leaf in jax.tree.leaves(aux):
        dtype = getattr(leaf, "dtype", None)
        is_array = isinstance(dtype, np.dtype) and dtype.kind not in "OSUmM"
        if not is_array and not isinstance(leaf, numbers.Number):
            raise TypeError(
                f"`aux` must be a pytree of arrays or of jax.ShapeDtypeStruct, got {leaf!r} in it: "
                "pass `aux=jax.eval_shape(value_fn, params)[1]`."
            )


def check_evaluate(evaluate: str, noise: Any) -> None:
    """No factors are asked for of noise that has none."""
    if evaluate == "factored" and not noise.has_factors:
        raise ValueError(
            f'`evaluate="factored"` needs noise of low rank, got {noise!r}: pass '
            '`noise=noise.low_rank()`, or `evaluate="auto"`, which forms the members of any other.'
        )


def check_fraction(name: str, value: Any) -> float:
    """A Python number in (0, 1]."""
    check_static(name, value, "float")
    fraction = _real(name, value)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"`{name}` must be in (0, 1], got {value!r}: it is the share "
            "of the population that recombines, 0.25 keeps a quarter."
        )
    return fraction


def check_static_number(name: str, value: Any, *, zero: bool) -> float:
    """The same as `check_number`, and no array: the program depends on the value."""
    check_static(name, value, "float")
    check_number(name, value, zero=zero)
    return float(value)


def check_number(name: str, value: Any, *, zero: bool) -> None:
    """A finite real number above zero, or from zero on; arrays pass unchecked."""
    if isinstance(value, jax.Array):
        return
    number = _real(name, value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"`{name}` must be finite and {bound}, got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """A Python bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_axes(name: str, value: Any) -> tuple[int, ...]:
    """Axes of an array, one or several, as a tuple."""
    axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for axis in axes:
        if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
            raise TypeError(
                f"`{name}` must be an axis, a sequence of axes, or a function from a leaf to such, "
                f"got {value!r}."
            )
    return tuple(map(int, axes))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few strings."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"`{name}` must be {listed}, got {value!r}.")


def check_function(name: str, value: Any, what: str) -> None:
    """A callable."""
    if not callable(value):
        raise TypeError(f"`{name}` must be a function {what}, got {value!r}.")


def check_operator(name: str, value: Any, kind: type, fix: str) -> None:
    """An operator of a kind; a class in its place lacks its brackets."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be an operator, got {value!r}: {fix}.")
    if callable(value):
        raise TypeError(
            f"`{name}` must not be callable, got {value!r}: optax.inject_hyperparams would take it "
            "for a schedule. Give it no `__call__`."
        )


def check_hashable(name: str, value: Any) -> None:
    """An operator that equal programs are known by."""
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be hashable, got {value!r}: make its class a "
            "`@dataclasses.dataclass(frozen=True)`, and hold tuples where it holds lists or arrays."
        ) from error


def check_like(name: str, found: Any, expected: Any) -> None:
    """Refuses a field of a state that is not like that of this optimizer.

    Args:
        name: of the field.
        found: the field.
        expected: shapes and dtypes. A float may come as another float, as a state that was cast
            has them; so may an integer.

    Raises:
        ValueError: the structure, a shape or a kind of dtype differs.
    """
    got: Any = jax.tree.structure(found)
    structure: Any = jax.tree.structure(expected)
    if got == structure:
        leaves = jax.tree_util.tree_leaves_with_path(expected)
        for (path, like), leaf in zip(leaves, jax.tree.leaves(found), strict=True):
            if not hasattr(like, "shape"):  # a function or a string
                continue
            shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
            kinds = (jnp.bool_, jnp.integer, jnp.inexact)
            alike = [jnp.issubdtype(dtype, k) == jnp.issubdtype(like.dtype, k) for k in kinds]
            if shape != like.shape or not all(alike):
                name += jax.tree_util.keystr(path)
                got, structure = f"{dtype} {list(shape)}", f"{like.dtype} {list(like.shape)}"
                break
    if got != structure:
        raise ValueError(
            f"`state.{name}` must be that of this optimizer, got {got} where that is {structure}: "
            "call `tx.init(params)` and restore into it, with the arguments of `evolve` that the "
            "state was made with."
        )


def checked_state(method: str, operator: Any, after: Any, state: Any) -> Any:
    """The next state of an operator, in the dtypes that its state had.

    Raises:
        ValueError: it is not like the state before: what a step returns would not fit the next one.
    """
    must = f"`{method}` must return a state like that of `{method.split('.')[0]}.init`, got"
    structures: Any = jax.tree.structure(after), jax.tree.structure(state)
    if structures[0] != structures[1]:
        raise ValueError(
            f"{must} {structures[0]} for {structures[1]} from {operator!r}: replace arrays only."
        )

    def in_its_dtype(value: Any, old: jax.Array) -> jax.Array:
        new: jax.Array = jnp.asarray(value)
        is_lost = jnp.issubdtype(new.dtype, jnp.inexact) > jnp.issubdtype(old.dtype, jnp.inexact)
        if new.shape != old.shape or is_lost:
            raise ValueError(
                f"{must} {new.dtype} {list(new.shape)} for {old.dtype} {list(old.shape)} from "
                f"{operator!r}: keep shapes and dtypes."
            )
        return new.astype(old.dtype)

    return jax.tree.map(in_its_dtype, after, state)


def _real(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a real number, got {value!r}.")
    return float(value)
