"""Checks of the arguments of `evolve` and `update`."""

from collections.abc import Mapping
import numbers
from typing import Any

import jax
import numpy as np

from egd_optax import _checks
from egd_optax.accept import Accept
from egd_optax.core import auxiliary
from egd_optax.core.bounds import check_bounds
from egd_optax.core.refinement import Refinement
from egd_optax.core.spec import STRAIGHT, CycleSpec
from egd_optax.execution import Execution
from egd_optax.noise.interface import Noise, moves_integers
from egd_optax.recombine import Recombine
from egd_optax.sigma import Sigma


def check_interval(evolve_every: Any) -> None:
    """A positive Python int, or an array, which passes unchecked."""
    if not isinstance(evolve_every, jax.Array):
        size = _checks.check_size("evolve_every", evolve_every)
        if size >= 2**31:
            raise ValueError(
                f"`evolve_every` must be below 2**31, got {size}: steps are counted in int32. To "
                "run no cycle at all pass `evolve=False` to `update`."
            )


def check_window(window: Any) -> tuple[int, int | None] | None:
    """Two Python ints, or one and None; or None."""
    if window is None:
        return None
    _checks.check_static("window", window, "pair of ints")
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(
            f"`window` must be a pair of ints, got {window!r}: `window=(0, 1000)` has cycles on "
            "the first 1000 steps alone."
        )
    start = _checks.check_size("window", window[0], least=0)
    if window[1] is None:
        return start, None
    stop = _checks.check_size("window", window[1])
    if stop <= start:
        raise ValueError(
            f"`window` must end behind its start, got {window!r}: no step would have a cycle."
        )
    return start, stop


def checked_spec(spec: CycleSpec) -> CycleSpec:
    """Checks the arguments of `evolve`, and returns them with Python ints."""
    for name, kind, fix in (
        ("noise", Noise, "write `noise.gaussian()`, or subclass `noise.Noise`"),
        ("recombine", Recombine, "write `recombine.mean()` or another of that module"),
        ("accept", Accept, _fix_of_accept(spec.accept)),
        ("execution", Execution, 'write `Execution(memory="replay")`, for example'),
    ):
        _checks.check_operator(name, getattr(spec, name), kind, fix)
    _checks.check_hashable("noise", spec.noise)
    _checks.check_aux(spec.aux)
    _checks.check_flag("antithetic", spec.antithetic)
    population_size = _check_population(spec.population_size, spec.antithetic)
    generations = _checks.check_size("generations", spec.generations)
    _check_sigma(spec.sigma, spec.accept)
    _checks.check_flag("relative", spec.noise.relative)
    _checks.check_static_number("min_scale", spec.noise.min_scale, zero=True)
    _check_support(spec.recombine, population_size)
    _check_reads(spec.recombine, spec.aux)
    _checks.check_flag("compares", spec.accept.compares)
    _checks.check_flag("takes_best", spec.accept.takes_best)
    _check_mutable(spec.mutable)
    check_bounds(spec.bounds)
    _checks.check_evaluate(spec.execution.evaluate, spec.noise)
    _check_batch_size(spec.execution.candidate_batch_size, population_size, spec.antithetic)
    es_optimizer = None
    if spec.es_optimizer is not STRAIGHT:
        es_optimizer = _checks.check_base(spec.es_optimizer, "es_optimizer")
    return spec._replace(
        population_size=population_size,
        generations=generations,
        es_optimizer=es_optimizer,
        refine=_refinement(spec),
        aux=auxiliary.shapes_of(spec.aux),
    )


def _fix_of_accept(accept: Any) -> str:
    """The call to write instead; users often pass the name of a rule as a string."""
    is_named = isinstance(accept, str) and accept in ("always", "best", "improved")
    name = accept if is_named else "best"
    return f"write `accept.{name}()`, or subclass `accept.Accept`"


def _check_population(population_size: Any, antithetic: bool) -> int:
    """At least a parent and a mutant, and an even number if members come in pairs."""
    why = ": the unmutated parent is one of them, so that nothing would mutate"
    size = _checks.check_size("population_size", population_size, 2, why)
    if antithetic and size % 2:
        raise ValueError(
            f"`population_size` must be even with antithetic=True, got {size}: the "
            "population is mirrored pairs around the parent, which is evaluated besides."
        )
    return size


def _check_support(rule: Any, population_size: int) -> None:
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


def _check_reads(rule: Recombine, aux: Any) -> None:
    """A rule that reads the aux of the members gets one."""
    if type(rule).reads is not Recombine.reads and aux is None:
        raise ValueError(
            f"`aux` must be given with a rule that reads it, got None with recombine={rule!r}: "
            "pass `aux=jax.eval_shape(value_fn, params)[1]`."
        )


def _refinement(spec: CycleSpec) -> Refinement | None:
    """The function that members learn by, None if they do not."""
    if spec.refine is None:
        return None
    _checks.check_static("refine", spec.refine, "function")
    _checks.check_function("refine", spec.refine, "of parameters, a key and the number of a member")
    _checks.check_hashable("refine", spec.refine)
    if spec.execution.evaluate == "factored":
        raise ValueError(
            f'`evaluate` must not be "factored" with refine={spec.refine!r}: a member that learned '
            'has no factors. Pass `evaluate="formed"`.'
        )
    if moves_integers(spec.noise):
        raise ValueError(
            f"`refine` must be None with noise={spec.noise!r}, got {spec.refine!r}: integers have "
            "no gradient to learn by. Refine the parameters that they are rounded from."
        )
    return Refinement(spec.refine, spec.execution.axis_names)


def _check_batch_size(
    candidate_batch_size: int | None, population_size: int, antithetic: bool
) -> None:
    """At most as many as there are members, and no pair divided."""
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


def _check_sigma(sigma: Any, accept: Accept) -> None:
    """A number, a schedule, or a rule that adapts; some rules compare child and parent."""
    if isinstance(sigma, Sigma):
        _checks.check_operator("sigma", sigma, Sigma, "")
        _checks.check_hashable("sigma", sigma)
        if sigma.compares and not accept.compares:
            raise ValueError(
                f"`sigma` must be a rule that needs no fitness of the child, got {sigma!r} with "
                f"{accept!r}, which evaluates none: pass `accept=accept.improved()`, or "
                "`sigma=sigma.path_length(...)`."
            )
    elif not callable(sigma):
        _checks.check_number("sigma", sigma, zero=True)


def _check_mutable(mutable: Any) -> None:
    """No model and no class, which could be called as a function of the parameters."""
    _checks.check_static("mutable", mutable, "function or pytree of bools")
    holds_arrays = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(mutable))
    if holds_arrays or isinstance(mutable, type):
        name = getattr(mutable, "__name__", type(mutable).__name__)
        raise TypeError(
            "`mutable` must be a pytree of bools, or a function of the parameters that returns "
            f"one, got {name}: a filter of NNX belongs to `nnx.Optimizer(model, tx, "
            "wrt=...)`, and the leaves of a model are no bools."
        )


def check_update(
    params: Any, functions: Mapping[str, Any], evolve: Any, *, accept: Accept
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
    if functions["value_fn"] is None and (evolve is None or evolve):
        raise TypeError(
            "`value_fn` must be passed to `update`, got None: call `tx.update(grads, state, "
            "params, value_fn=lambda params: loss(params, batch))`. If a wrapper around this "
            "optimizer drops it, bind it: `egd_optax.bind_value_fn(tx, value_fn)`; in place of "
            "Flax's TrainState take, or subclass, `egd_optax.flax.TrainState`."
        )
    for name, fn in functions.items():
        if fn is not None and not callable(fn):
            raise TypeError(
                f"`{name}` must be a function of the parameters, got {fn!r}: pass "
                "`lambda params: loss(params, batch)`, not the loss itself."
            )
    if (fn := functions["accept_value_fn"]) is not None and not accept.compares:
        raise ValueError(
            f"`accept_value_fn` must be left out with accept={accept!r}, got {fn!r}: "
            "that rule compares nothing. Use `accept.improved()` or `accept.best()`."
        )
    return None if evolve is None else bool(evolve)
