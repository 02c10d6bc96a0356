"""What `evolve` and its `update` accept, checked in one place.

Only concrete Python and NumPy values are checked. Under `optax.inject_hyperparams`
numeric arguments arrive as arrays, whose values are not known when the step is traced.
"""

from collections.abc import Callable
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._cycle import CycleSpec
from egd_optax._cycle.recombine import RANKED

ACCEPT_RULES = ("always", "improved", "best")
MEMORY_MODES = ("host", "device", "replay")
NOISE_KINDS = ("full_rank", "low_rank")
RECOMBINE_RULES = ("mean", "softmax", RANKED)


def check_base(base: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the base optimizer, made to accept extra arguments."""
    if not (callable(getattr(base, "init", None)) and callable(getattr(base, "update", None))):
        hint = (
            "call it first, for example `evolve(optax.adam(1e-3))`"
            if callable(base)
            else "pass an optax optimizer, for example `optax.adam(1e-3)`"
        )
        raise TypeError(f"`base` must be an optax.GradientTransformation, got {base!r}: {hint}.")
    return optax.with_extra_args_support(base)


def cycle_spec(
    *,
    population_size: Any,
    elite_fraction: Any,
    antithetic: Any,
    generations: Any,
    candidate_batch_size: Any,
    sigma: Any,
    relative_sigma: Any,
    min_scale: Any,
    noise: Any,
    rank: Any,
    recombine: Any,
    recombine_step: Any,
    temperature: Any,
    accept: Any,
    reset_base: Any,
    mutable: Any,
    memory: Any,
    axis_name: Any,
    population_axis: Any,
    mesh: Any,
) -> CycleSpec:
    """Checks what a cycle does and puts it together."""
    population_size = check_size("population_size", population_size)
    check_flag("antithetic", antithetic)
    if antithetic:
        check_pairs(population_size)
    candidate_batch_size = check_batch_size(candidate_batch_size, population_size, antithetic)
    if not callable(sigma):
        check_number("sigma", sigma, zero=True)
    check_flag("relative_sigma", relative_sigma)
    check_number("min_scale", min_scale, zero=True)
    noise_rank = check_noise(noise, rank)
    if not callable(recombine):
        check_choice("recombine", recombine, RECOMBINE_RULES, "a callable from fitness to weights")
    check_number("recombine_step", recombine_step, zero=False)
    check_number("temperature", temperature, zero=False)
    check_choice("accept", accept, ACCEPT_RULES)
    check_flag("reset_base", reset_base)
    check_choice("memory", memory, MEMORY_MODES)
    axis_names = check_axis_name(axis_name)
    check_population_axis(population_axis, axis_names, mesh)
    return CycleSpec(
        population_size=population_size,
        elite_count=elite_count(elite_fraction, population_size),
        antithetic=antithetic,
        generations=check_size("generations", generations),
        candidate_batch_size=candidate_batch_size,
        sigma=sigma,
        relative_sigma=relative_sigma,
        min_scale=min_scale,
        rank=noise_rank,
        recombine=recombine,
        recombine_step=recombine_step,
        temperature=temperature,
        accept=accept,
        reset_base=reset_base,
        mutable=mutable,
        memory=memory,
        axis_names=axis_names,
        population_axis=population_axis,
        mesh=mesh,
    )


def check_size(name: str, value: Any) -> int:
    """A positive Python int that shapes the program, so it may not be traced."""
    _check_static(name, value, "int")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a Python int, got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
    return int(value)


def check_interval(evolve_every: Any) -> Any:
    """A positive Python int, or an array, which passes unchecked."""
    if isinstance(evolve_every, jax.Array):
        return None
    return check_size("evolve_every", evolve_every)


def check_pairs(population_size: int) -> None:
    """An even number of members, which come in pairs."""
    if population_size % 2:
        raise ValueError(
            f"`population_size` must be even with antithetic=True, got {population_size}: the "
            "population is mirrored pairs around the parent, which is evaluated besides."
        )


def check_batch_size(candidate_batch_size: Any, population_size: int, antithetic: bool) -> int:
    """A positive Python int, no more than there are members, that divides no pair."""
    size = check_size("candidate_batch_size", candidate_batch_size)
    if size > population_size:
        raise ValueError(
            f"`candidate_batch_size` must be at most `population_size` ({population_size}), got "
            f"{candidate_batch_size!r}: there are no more members to evaluate at a time."
        )
    if antithetic and size % 2 and size > 1:
        raise ValueError(
            f"`candidate_batch_size` must be 1 or even with antithetic=True, got {size}: the two "
            "members of a pair are evaluated together."
        )
    return size


def check_noise(noise: Any, rank: Any) -> int | None:
    """The rank of the noise, None for full rank; a rank is given only where it means something."""
    check_choice("noise", noise, NOISE_KINDS)
    size = check_size("rank", rank)
    if noise == "low_rank":
        return size
    if size != 1:
        raise ValueError(
            f'`rank` is that of `noise="low_rank"`, got {rank!r} with noise={noise!r}: leave '
            "one of them out."
        )
    return None


def elite_count(elite_fraction: Any, population_size: int) -> int:
    """The number of elites, ceil(elite_fraction * population_size) and at least 1."""
    _check_static("elite_fraction", elite_fraction, "float")
    fraction = _real("elite_fraction", elite_fraction)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"`elite_fraction` must be in (0, 1], got {elite_fraction!r}: it is the share "
            "of the population that recombines, 0.25 keeps a quarter."
        )
    # 0.1 * 30 is 3.0000000000000004: a fraction that divides the population is exact.
    return max(1, math.ceil(round(fraction * population_size, 9)))


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


def check_choice(name: str, value: Any, choices: tuple[str, ...], *others: str) -> None:
    """One of a few strings; `others` are what else is allowed, in words."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join([*(f'"{choice}"' for choice in choices), *others])
        raise ValueError(f"`{name}` must be {listed}, got {value!r}.")


def check_axis_name(axis_name: Any) -> tuple[str, ...]:
    """None, a name, or a tuple of names; returns the names."""
    if axis_name is None:
        return ()
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`axis_name` must be the name of a mapped axis or a tuple of names, got {axis_name!r}."
        )
    return names


def check_population_axis(population_axis: Any, axis_names: tuple[str, ...], mesh: Any) -> None:
    """None or a name that is not one of `axis_name`; a mesh is given only with a name."""
    if population_axis is not None and not isinstance(population_axis, str):
        raise TypeError(f"`population_axis` must be the name of one axis, got {population_axis!r}.")
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {mesh!r}.")
    if mesh is not None and population_axis is None:
        raise ValueError(
            f"`mesh` is that of `population_axis`, got {mesh!r} without one: name an axis of the "
            "mesh, or leave it out, which sharded parameters and batches do not need."
        )
    if population_axis in axis_names:
        raise ValueError(
            f"`population_axis` must not be one of `axis_name`, got {population_axis!r} for both: "
            "devices along an axis have either their own samples or their own members."
        )


def check_key(key: Any) -> None:
    """An int or a threefry key; makes no array, so starts no backend."""
    fix = 'pass an int, or `jax.random.key(0, impl="threefry2x32")`.'
    if isinstance(key, bool) or not isinstance(key, (numbers.Integral, jax.Array, np.ndarray)):
        raise TypeError(f"`key` must be an int or a jax PRNG key, got {key!r}: {fix}")
    if isinstance(key, numbers.Integral):
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


def check_call(
    params: Any, value_fn: Any, accept_value_fn: Any, evolve: Any, *, accept: str
) -> tuple[Callable[..., Any], bool | None]:
    """Checks what `update` was called with; `evolve` comes back as None or a Python bool."""
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
            "params, value_fn=lambda params: loss(params, batch))`. If you did, a wrapper "
            "around this optimizer dropped it."
        )
    for name, fn in (("value_fn", value_fn), ("accept_value_fn", accept_value_fn)):
        if fn is not None and not callable(fn):
            raise TypeError(
                f"`{name}` must be a function of the parameters, got {fn!r}: pass "
                "`lambda params: loss(params, batch)`, not the loss itself."
            )
    if accept_value_fn is not None and accept == "always":
        raise ValueError(
            f"`accept_value_fn` must be left out with accept={accept!r}, got {accept_value_fn!r}: "
            'nothing is compared there. Use accept="improved" or "best".'
        )
    return value_fn, None if evolve is None else bool(evolve)


def make_key_data(key: Any) -> jax.Array:
    """The raw data of a checked key: uint32 `[2]`, a buffer of its own."""
    if isinstance(key, numbers.Integral) or _is_seed(key):
        key = jax.random.key(key, impl="threefry2x32")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    # The state may be donated, the caller's key may not.
    return jnp.array(key, jnp.uint32, copy=True)


def _check_static(name: str, value: Any, kind: str) -> None:
    if isinstance(value, jax.Array):
        raise TypeError(
            f"`{name}` must be a Python {kind}, got {value!r}: under "
            f'optax.inject_hyperparams name it in `static_args=("{name}", ...)`.'
        )


def _is_seed(key: jax.Array | np.ndarray) -> bool:
    return key.shape == () and jnp.issubdtype(key.dtype, jnp.integer)


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, np.ndarray)):
        raise TypeError(f"`{name}` must be a real number, got {value!r}.")
    return float(value)
