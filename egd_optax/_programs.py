"""Cycles outside of `jax.jit`: compiled once, and not on every cycle.

JAX knows a program by its functions. Outside of jit the functions of a cycle are new
on every call. So, in most loops, is `value_fn`: a fresh lambda around the batch. Here the cycle is
a separate program, which the optimizer keeps, and `value_fn` is known by its operations. It is
traced on every cycle, which takes milliseconds. If it traces to the same operations, on whatever
arrays, the program is the same. Nothing is assumed of functions that look alike.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
import inspect
import re
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._advice import advice_on_gaps, advice_on_tracers, advice_on_value_fn
from egd_optax._jax import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun, without_constants
from egd_optax.backend import xla
from egd_optax.base.arguments import NUMBERS, arrays_of, taken_by
from egd_optax.core.auxiliary import Auxiliary, Evaluated
from egd_optax.core.fitness import as_evaluated, counted, counts
from egd_optax.core.info import Ran, Start
from egd_optax.core.spec import CycleSpec, Mutating, Objectives
from egd_optax.factored.interpret import is_jaxpr
from egd_optax.noise.interface import Noise

# Programs that are kept, the latest ones; and so many compiled in a row are worth a warning.
_KEPT = 8
_PATIENCE = 3


class Programs:
    """The programs of one optimizer for cycles outside of jit.

    Attributes:
        run_cycle_if: the function that they compute.
        compiled: the programs, by the operations of their objectives.
        code: the code of the `value_fn` that the latest one was compiled for.
        anew: how many programs were compiled for this code since one was used again.
    """

    def __init__(self, run_cycle_if: Callable[..., Ran]) -> None:
        """None yet."""
        self.run_cycle_if = run_cycle_if
        self.compiled: dict[Hashable, Callable[..., Any]] = {}
        self.code: object = None
        self.anew = 0

    def __getstate__(self) -> dict[str, Any]:
        """The state that is sent to another process: no program."""
        return vars(Programs(self.run_cycle_if))

    def run_cycle(
        self,
        due: Any,
        spec: CycleSpec,
        mutating: Mutating,
        objectives: Objectives,
        start: Start,
    ) -> Ran:
        """Runs a cycle if one is due: outside of jit in a program that may be known.

        Args:
            due: bool `[]`.
            spec: the settings of the cycle.
            mutating: the leaves that mutate.
            objectives: the functions to select by.
            start: the step before its cycle.
        """
        if _is_traced((due, start, objectives.extra_args)) or not due:
            return self.run_cycle_if(due, spec, mutating, objectives, start)
        params = start.params
        known = {
            name: _known(fn, params, objectives, spec.aux)
            for name, fn in (
                ("value_fn", objectives.value_fn),
                ("accept_value_fn", objectives.accept_value_fn),
            )
            if fn is not None
        }
        own, with_own = arrays_of(params, NUMBERS)
        key = (
            mutating,
            jax.tree.structure(params),
            *((name, fn.identity) for name, fn in known.items()),
        )
        program = self.compiled.pop(key, None)
        if program is None:
            program = _program(
                self.run_cycle_if,
                spec,
                mutating,
                {name: fn.jaxpr for name, fn in known.items()},
                with_own,
            )
            self._warn_of(objectives.value_fn)
        else:
            self.anew = 0
        self.compiled[key] = program  # the latest comes last
        while len(self.compiled) > _KEPT:
            del self.compiled[next(iter(self.compiled))]
        arrays = {name: fn.arrays for name, fn in known.items()}
        all_extra, _ = arrays_of(objectives.extra_args)
        # The functions have the parts that they take among their arrays; a noise reads it whole.
        reads = type(spec.noise).reads is not Noise.reads
        base_state = objectives.base_state if reads else None
        of_refine = {} if spec.refine is None else spec.refine.taken(objectives.extra_args)
        with advice_on_value_fn():
            start = start._replace(params=None)
            result: Ran = program(arrays, all_extra, of_refine, own, base_state, start)
        return result

    def _warn_of(self, value_fn: Callable[..., Any]) -> None:
        """Warns if every cycle compiles what is written once."""
        code = getattr(inspect.unwrap(value_fn), "__code__", value_fn)
        self.anew = self.anew + 1 if code == self.code else 1
        self.code = code
        if self.anew == _PATIENCE:
            warnings.warn(
                "Outside of `jax.jit` each of the last cycles was compiled anew, for `value_fn` "
                "was another program in each: it calls back to Python, holds numbers that differ "
                "from step to step, or arrays of other shapes. Put the whole step into `jax.jit`, "
                "and pass what differs as an array, `tx.update(..., value_fn=value_fn, "
                "batch=batch)` with `value_fn(params, batch)`.",
                stacklevel=4,
            )


class _Known(NamedTuple):
    """The operations of a function of the parameters.

    Attributes:
        identity: equal for two functions that do the same to their arrays.
        jaxpr: its operations, on arrays, the index of the generation, whether the result counts,
            and parameters.
        arrays: those that it closes over, and those among its arguments.
    """

    identity: Hashable
    jaxpr: Any
    arrays: tuple[list[Any], list[Any]]


def _known(
    fn: Callable[..., Any], params: optax.Params, objectives: Objectives, aux: Auxiliary
) -> _Known:
    """Traces a function, with numbers and strings among its arguments as they are."""
    taken = taken_by(fn, objectives.extra_args, {"base_state": objectives.base_state})
    arguments, with_arguments = arrays_of(taken)
    own, with_own = arrays_of(params, NUMBERS)

    def value(
        arguments: list[Any], generation: jax.Array, counts: jax.Array, own: list[Any]
    ) -> Evaluated:
        kwargs = taken_by(fn, with_arguments(arguments), {"generation": generation})
        with advice_on_tracers(), advice_on_gaps(params), counted(counts):
            return as_evaluated(fn(with_own(own), **kwargs), aux)

    with advice_on_value_fn():
        closed = jax.make_jaxpr(value)(arguments, jnp.int32(0), jnp.bool_(True), own)
    jaxpr = without_constants(closed)  # a program that is kept must not keep a batch
    return _Known(_identity(jaxpr), jaxpr, (closed.consts, arguments))


def _program(
    run_cycle_if: Callable[..., Ran],
    spec: CycleSpec,
    mutating: Mutating,
    jaxprs: Mapping[str, Any],
    with_own: Callable[[list[Any]], optax.Params],
) -> Callable[..., Any]:
    """A compiled cycle, of arrays and the step before it."""

    def objective(name: str, closed_over: list[Any], arguments: list[Any]) -> Callable[..., Any]:
        does = jaxpr_as_fun(ClosedJaxpr(jaxprs[name], closed_over))

        def value_fn(params: optax.Params, generation: jax.Array) -> Any:
            own, _ = arrays_of(params, NUMBERS)
            value, *aux = does(*arguments, generation, counts(), *own)
            if spec.aux is None:
                return value
            return value, jax.tree.unflatten(jax.tree.structure(spec.aux), aux)

        return value_fn

    def run(
        arrays: Mapping[str, tuple[list[Any], list[Any]]],
        all_extra: list[Any],
        of_refine: dict[str, Any],
        own: list[Any],
        base_state: Any,
        start: Start,
    ) -> Ran:
        functions = {name: objective(name, *of_function) for name, of_function in arrays.items()}
        # By a name that no function takes: only their division over devices is looked at.
        extra_args = {"": all_extra, **of_refine}
        of_acceptance = functions.get("accept_value_fn")
        objectives = Objectives(functions["value_fn"], of_acceptance, extra_args, base_state)
        due = ~xla.opaque_false(start.cycle)
        return run_cycle_if(due, spec, mutating, objectives, start._replace(params=with_own(own)))

    return jax.jit(run)


def _identity(jaxpr: Any) -> Hashable:
    """Returns a value that is equal for two functions that do the same to their arrays."""
    text = re.sub(r" at 0x[0-9a-fA-FX]+", "", str(jaxpr))
    return text, tuple(map(id, _held_inside(jaxpr)))


def _held_inside(jaxpr: Any) -> Iterator[Any]:
    """The objects that JAX does not print in full: arrays, and functions that are called back."""
    for equation in jaxpr.eqns:
        for var in equation.invars:
            if isinstance(var, Literal) and np.ndim(var.val):
                yield var.val
        # A function for derivatives is not called, and is another object on every call.
        derives = equation.primitive.name.startswith(("custom_jvp", "custom_vjp"))
        for param in jax.tree.leaves(tuple(equation.params.values()), is_leaf=is_jaxpr):
            if isinstance(param, ClosedJaxpr):
                yield from param.consts
                yield from _held_inside(param.jaxpr)
            elif isinstance(param, Jaxpr):
                yield from _held_inside(param)
            elif callable(param) and not derives:
                # JAX wraps a callback, and a rule for `jax.vmap`, anew on every call.
                yield getattr(param, "callback_func", getattr(param, "rule", param))


def _is_traced(tree: Any) -> bool:
    """Whether this is part of a program, of `jax.jit` for example."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
