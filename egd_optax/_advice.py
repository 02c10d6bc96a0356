"""Notes on errors: a `value_fn` that fails, a foreign state, a wrapper that wastes cycles."""

from collections.abc import Iterator
import contextlib
import inspect
import sys
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import optax

from egd_optax._jax import ClosedJaxpr, Literal


@contextlib.contextmanager
def advice_on_value_fn() -> Iterator[None]:
    """Adds a note to errors that mean that `value_fn` holds something that it must not hold.

    JAX notices an array that leaked from another trace when the program around it runs. Outside of
    `jax.jit` this is here, else it is when the caller's jitted step runs.
    """
    try:
        yield
    except Exception as error:
        flax_errors = sys.modules.get("flax.errors")  # there if a Flax model is
        if isinstance(error, jax.errors.UnexpectedTracerError):
            error.add_note(
                "`value_fn` uses an array that a traced function stored away: pass it as an "
                "argument, `tx.update(grads, state, params, value_fn=value_fn, batch=batch)` "
                "with `value_fn(params, batch)`."
            )
        elif flax_errors and isinstance(error, flax_errors.TraceContextError):
            error.add_note(
                "`value_fn` changes an NNX module that it captured: pass "
                "`value_fn=egd_optax.flax.nnx_value_fn(model, loss)`, which scores a copy. Where "
                "it is a metric of `nnx.metrics`, return the value and update the metric outside."
            )
        elif isinstance(error, TypeError) and "'State' object is not callable" in str(error):
            error.add_note(
                "`value_fn` gets the parameters of an NNX model, not the model: pass "
                "`value_fn=egd_optax.flax.nnx_value_fn(model, loss)`."
            )
        elif isinstance(error, NotImplementedError) and "vmap_method" in str(error):
            error.add_note(
                "`value_fn` calls back to Python, and members are evaluated together: give "
                '`jax.pure_callback` the argument `vmap_method=`, "sequential" for example, or '
                "pass `value_fn=egd_optax.callback.host_value_fn(fn)` with the Python function."
            )
        elif isinstance(error, NotImplementedError) and "not supported in vmap-of" in str(error):
            error.add_note(
                "`value_fn` calls Python, which is done once for each evaluation, and that cannot "
                "be under a `jax.vmap` of the whole optimizer: take its steps in turns, with "
                "`jax.lax.map`."
            )
        raise


@contextlib.contextmanager
def advice_on_tracers() -> Iterator[None]:
    """Adds a note to the errors of a `value_fn` that looks at numbers while it is traced."""
    try:
        yield
    except (
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.ConcretizationTypeError,
    ) as error:
        error.add_note(
            "`value_fn` is traced by JAX, but needs numbers, as NumPy and plain Python do: pass "
            "`value_fn=egd_optax.callback.host_value_fn(fn)`, which calls `fn` with NumPy arrays."
        )
        raise


@contextlib.contextmanager
def advice_on_gaps(params: optax.Params) -> Iterator[None]:
    """Adds a note to the errors of a `value_fn` that was given parameters with gaps.

    An error that comes from `optax.MaskedNode` in a model's arithmetic does not name the wrapper
    that put it there. Nor does it say how to fill the gap.

    Args:
        params: the parameters that `value_fn` is called with.
    """
    try:
        yield
    except Exception as error:
        if _has_gaps(params):
            error.add_note(
                "`value_fn` was given `optax.MaskedNode` in the place of the leaves that a wrapper "
                "around the optimizer hides, such as `optax.masked` or `optax.partition`. If it "
                "needs those, pass `value_fn=egd_optax.with_frozen(value_fn, params)` with the "
                "whole parameters."
            )
        elif isinstance(params, jax.Array) and isinstance(
            error, AttributeError | IndexError | KeyError | TypeError
        ):
            error.add_note(
                f"`value_fn` was given one array of shape {params.shape}. If yours are a tree, a "
                "wrapper around the optimizer hands it on in another form, as `optax.flatten` "
                "does: put that into the base, `evolve(optax.flatten(base))`."
            )
        raise


@contextlib.contextmanager
def advice_on_state(
    base: optax.GradientTransformation, base_state: optax.OptState, params: optax.Params
) -> Iterator[None]:
    """Replaces the errors of a base that was given the state of another one.

    They come from the middle of its arithmetic, and name neither the state nor what it lacks.
    """
    try:
        yield
    except Exception as error:
        # Traced, so that nothing is allocated; closed over, for parameters that are functions.
        fresh = jax.eval_shape(lambda: base.init(params))
        if difference := _difference(_shapes(base_state), _shapes(fresh)):
            raise ValueError(
                f"`state` must be that of this optimizer, got one whose {difference}: restore a "
                "checkpoint into `tx.init(params)` of the base and the parameters that it was "
                "saved with."
            ) from error
        raise


def _shapes(state: optax.OptState) -> dict[str, tuple[int, ...]]:
    """By path; without dtypes, as a state may have been cast."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {f"base_state{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves}


def _difference(found: dict[str, tuple[int, ...]], fresh: dict[str, tuple[int, ...]]) -> str:
    """Describes the first difference of one state from another; empty if there is none."""
    for path, shape in fresh.items():
        if path not in found:
            return f"`{path}` is missing"
        if found[path] != shape:
            return f"`{path}` has the shape {list(found[path])}, not {list(shape)}"
    return next((f"`{path}` is none of its own" for path in found if path not in fresh), "")


def _has_gaps(params: optax.Params) -> bool:
    def is_gap(node: object) -> bool:
        return isinstance(node, optax.MaskedNode)

    return any(map(is_gap, jax.tree.leaves(params, is_leaf=is_gap)))


def warn_of_constant(closed: ClosedJaxpr, count: int) -> None:
    """Warns if none of `count` inputs of a program, the mutating leaves, reaches its output.

    They come last but one: behind the arrays that it closes over, before a flag.

    An operation counts as depending on all of its operands. So a `value_fn` that reads a member
    without an effect on its result causes no warning.
    """
    jaxpr = closed.jaxpr
    reached = set(jaxpr.invars[-1 - count : -1])

    def is_reached(var: Any) -> bool:
        return not isinstance(var, Literal) and var in reached

    for equation in jaxpr.eqns:
        if any(map(is_reached, equation.invars)):
            reached.update(equation.outvars)
    if count and not is_reached(jaxpr.outvars[0]):  # the fitness; the aux may be fixed
        warnings.warn(
            "`value_fn` returns the same for all members, for no parameter that mutates is used. "
            "It may print them: while JAX traces it they are no numbers. Pass "
            "`value_fn=egd_optax.callback.host_value_fn(fn)`, which calls `fn` with NumPy arrays.",
            stacklevel=2,
        )


def warn_inside_multi_steps() -> None:
    """Warns if `optax.MultiSteps` is calling: it would run a due cycle k times.

    It calls the optimizer that it wraps on every micro-step, and drops all results but
    the last. Its arguments do not tell which is the last, so this looks at the caller.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.update.__code__:
            warnings.warn(
                "optax.MultiSteps runs a due cycle on each of its k micro-steps and keeps the "
                "last: accumulate inside instead, `evolve(optax.MultiSteps(base, k)"
                ".gradient_transformation(), evolve_every=n * k)`, or decide when to evolve, "
                "`update(..., evolve=micro_step % (n * k) == 0)`.",
                stacklevel=3,
            )
            return
        frame = frame.f_back
