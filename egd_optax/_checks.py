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

# What shapes the program, or is a function that is not a schedule of the step: an argument of
# `optax.inject_hyperparams(egd, static_args=STATIC_ARGS)`, which would trace or call it.
STATIC_ARGS = ("population_size", "generations", "mutable", "reset_base")


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


def check_interval(evolve_every: Any) -> int | None:
    """A positive Python int, or an array, which passes unchecked."""
    if isinstance(evolve_every, jax.Array):
        return None
    return check_size("evolve_every", evolve_every)


def check_spec(spec: Any) -> Any:
    """What a cycle does, see `CycleSpec`, of operators that are such; returned with Python ints."""
    check_flag("antithetic", spec.antithetic)
    population_size = check_population(spec.population_size, spec.antithetic)
    generations = check_size("generations", spec.generations)
    if not callable(spec.sigma):
        check_number("sigma", spec.sigma, zero=True)
    check_flag("relative", spec.noise.relative)
    check_static_number("min_scale", spec.noise.min_scale, zero=True)
    check_support(spec.recombine, population_size)
    check_flag("compares", spec.accept.compares)
    check_flag("takes_best", spec.accept.takes_best)
    check_static("mutable", spec.mutable, "function or pytree of bools")
    check_evaluate(spec.execution.evaluate, spec.noise)
    check_batch_size(spec.execution.candidate_batch_size, population_size, spec.antithetic)
    return spec._replace(population_size=population_size, generations=generations)


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


def check_population(population_size: Any, antithetic: bool) -> int:
    """At least a parent and a mutant, and an even number where members come in pairs."""
    why = ": the unmutated parent is one of them, so that nothing would mutate"
    size = check_size("population_size", population_size, 2, why)
    if antithetic and size % 2:
        raise ValueError(
            f"`population_size` must be even with antithetic=True, got {size}: the "
            "population is mirrored pairs around the parent, which is evaluated besides."
        )
    return size


def check_support(rule: Any, population_size: int) -> None:
    """How many members recombine: a Python int, for the program depends on it, or None."""
    support = rule.support(population_size)
    if support is None:
        return
    if isinstance(support, bool) or not isinstance(support, numbers.Integral):
        raise TypeError(
            f"`recombine.support` must return a Python int or None, got {support!r} from "
            f"{rule!r}: it shapes the program, so it may not be traced."
        )
    if not 1 <= int(support) <= population_size:
        raise ValueError(
            f"`recombine.support` must be from 1 to `population_size` ({population_size}), got "
            f"{support!r} from {rule!r}: return None where all members can weigh something."
        )


def check_evaluate(evaluate: str, noise: Any) -> None:
    """No factors are asked for of noise that has none."""
    if evaluate == "factored" and not noise.has_factors:
        raise ValueError(
            f'`evaluate="factored"` needs noise of low rank, got {noise!r}: pass '
            '`noise=noise.low_rank()`, or `evaluate="auto"`, which forms the members of any other.'
        )


def check_batch_size(
    candidate_batch_size: int | None, population_size: int, antithetic: bool
) -> None:
    """No more than there are members, and no pair divided."""
    if candidate_batch_size is None:
        return
    if candidate_batch_size > population_size:
        raise ValueError(
            f"`candidate_batch_size` must be at most `population_size` ({population_size}), got "
            f"{candidate_batch_size!r}: there are no more members to evaluate at a time."
        )
    if antithetic and candidate_batch_size % 2 and candidate_batch_size > 1:
        raise ValueError(
            "`candidate_batch_size` must be 1 or even with antithetic=True, got "
            f"{candidate_batch_size}: the two members of a pair are evaluated together."
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


def check_key(key: Any) -> None:
    """An int of 32 bits or a threefry key; makes no array, so starts no backend."""
    fix = 'pass an int, or `jax.random.key(0, impl="threefry2x32")`.'
    if isinstance(key, bool) or not isinstance(key, (numbers.Integral, jax.Array, np.ndarray)):
        raise TypeError(f"`key` must be an int or a jax PRNG key, got {key!r}: {fix}")
    if isinstance(key, numbers.Integral) or (isinstance(key, np.ndarray) and _is_seed(key)):
        if not 0 <= int(key) < 2**32:
            raise ValueError(
                f"`key` must fit into 32 bits, from 0 to 2**32 - 1, got {key!r}: JAX drops the "
                "others, so that different seeds give the same run. Pass another int, or "
                "`jax.random.fold_in(jax.random.key(low), high)`."
            )
        return
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != () or jax.random.key_impl(key) != "threefry2x32":
            raise ValueError(
                f"`key` must be a single threefry key, got {key!r} of shape {key.shape}, "
                f"whose members would differ between the memory modes: {fix}"
            )
    elif not (_is_seed(key) or (key.shape == (2,) and key.dtype == jnp.uint32)):
        raise ValueError(
            f"`key` must be an int, a typed key or raw key data (uint32 [2]), got "
            f"{key.dtype} {list(key.shape)}: {fix}"
        )


def make_key_data(key: Any) -> jax.Array:
    """The raw data of a checked key: uint32 `[2]`, a buffer of its own."""
    if isinstance(key, numbers.Integral) or _is_seed(key):
        key = jax.random.key(key, impl="threefry2x32")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    # The state may be donated, the caller's key may not.
    return jnp.array(key, jnp.uint32, copy=True)


def check_update(
    params: Any,
    value_fn: Any,
    accept_value_fn: Any,
    base_value_fn: Any,
    evolve: Any,
    *,
    accept: Any,
) -> bool | None:
    """Checks what `update` was called with; returns `evolve` as None or a Python bool."""
    if evolve is not None and not isinstance(evolve, (bool, np.bool_)):
        raise TypeError(
            f"`evolve` must be None, True or False when the step is traced, got {evolve!r}: "
            "make it a static argument of your jitted step, or pass None."
        )
    if params is None:
        raise ValueError(
            "`params` must be passed to `update`, got None: call "
            "`tx.update(grads, state, params, value_fn=...)`."
        )
    if value_fn is None and (evolve is None or evolve):
        raise TypeError(
            "`value_fn` must be passed to `update`, got None: call `tx.update(grads, state, "
            "params, value_fn=lambda params: loss(params, batch))`. If a wrapper around this "
            "optimizer drops it, bind it: `egd_optax.bind_value_fn(tx, value_fn)`; in place of "
            "Flax's TrainState take, or subclass, `egd_optax.flax.TrainState`."
        )
    for name, fn in (
        ("value_fn", value_fn),
        ("accept_value_fn", accept_value_fn),
        ("base_value_fn", base_value_fn),
    ):
        if fn is not None and not callable(fn):
            raise TypeError(
                f"`{name}` must be a function of the parameters, got {fn!r}: pass "
                "`lambda params: loss(params, batch)`, not the loss itself."
            )
    if accept_value_fn is not None and not accept.compares:
        raise ValueError(
            f"`accept_value_fn` must be left out with accept={accept!r}, got {accept_value_fn!r}: "
            "that rule compares nothing. Use `accept.improved()` or `accept.best()`."
        )
    return None if evolve is None else bool(evolve)


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


def _is_seed(key: jax.Array | np.ndarray) -> bool:
    return key.shape == () and jnp.issubdtype(key.dtype, jnp.integer)


def _real(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a real number, got {value!r}.")
    return float(value)
