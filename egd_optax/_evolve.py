"""`evolve`: the base optimizer every step, a cycle when one is due."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax import _checks, accept, noise, recombine
from egd_optax._advice import advice_on_state, warn_inside_multi_steps
from egd_optax._axes import check_axes, check_population_axis
from egd_optax.accept import Accept
from egd_optax.backend import xla
from egd_optax.base import arguments
from egd_optax.base.frozen_leaves import Frozen
from egd_optax.base.reset import Reset, forget_the_point, reset_after_jump
from egd_optax.core import auxiliary, cycle, strategy
from egd_optax.core.cycle import CycleInfo
from egd_optax.core.mutable import mutating_leaves
from egd_optax.core.programs import Programs
from egd_optax.core.spec import STRAIGHT, CycleSpec, Objectives, StrategyState
from egd_optax.execution import Execution
from egd_optax.noise import Noise
from egd_optax.recombine import Recombine

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
ScalarOrSchedule = jax.typing.ArrayLike | Schedule


class EvolveState(NamedTuple):
    """State of `evolve`; scalars beside the state of the base optimizer.

    Attributes:
        count: int32 `[]`, steps taken.
        cycle: int32 `[]`, cycles run.
        key_data: uint32 `[2]`, the raw threefry key that all noise derives from; raw,
            because typed keys do not pass through serialization or tree arithmetic.
        base_state: state of the base optimizer.
        info: what the latest cycle did, `CycleInfo`.
        strategy_state: what `es_optimizer` and `accept` keep, `StrategyState`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> tx = evolve(optax.sgd(0.1), evolve_every=2)
        >>> params = jnp.ones(3)
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...   updates, state = tx.update(params, state, params, value_fn=jnp.sum)
        >>> int(state.count), int(state.cycle), bool(jnp.isfinite(state.info.best_fitness))
        (4, 2, True)
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's states
    cycle: jax.Array
    key_data: jax.Array
    base_state: optax.OptState
    info: CycleInfo
    strategy_state: StrategyState = StrategyState()


def is_due(step: Any, evolve_every: Any) -> Any:
    """Whether a cycle runs on a step: on steps N, 2N, ... where N is `evolve_every`.

    For a host loop that decides itself, with a program for either kind of step. The
    idle program then costs exactly what the base optimizer costs.

    Args:
        step: number of the step, counted from 1, an int or an int array `[]`: the step
            about to be taken is `state.count + 1`.
        evolve_every: steps between cycles, at least 1.

    Returns:
        A bool for a Python or NumPy int, else a bool array `[]`.

    Raises:
        ValueError: `step` is a Python int below 1.

    Example:
        >>> from egd_optax import is_due
        >>> [step for step in range(1, 10) if is_due(step, 4)]
        [4, 8]
    """
    if not isinstance(step, jax.Array) and step < 1:
        raise ValueError(f"`step` counts from 1, got {step!r}: in a loop from 0 pass `step + 1`.")
    # For arrays not `%`, which compiles to more, for the sake of negative numbers.
    due = (
        jnp.fmod(step, evolve_every) if isinstance(step, jax.Array) else step % evolve_every
    ) == 0
    return due if isinstance(due, jax.Array) else bool(due)


def evolve(
    base: optax.GradientTransformation,
    *,
    evolve_every: int = 200,
    population_size: int = 8,
    generations: int = 1,
    sigma: ScalarOrSchedule = 0.02,
    noise: Noise = noise.gaussian(),
    antithetic: bool = False,
    recombine: Recombine = recombine.mean(),
    es_optimizer: optax.GradientTransformation = STRAIGHT,
    accept: Accept = accept.best(),
    reset_base: bool | Reset = False,
    mutable: Any = None,
    aux: Any = None,
    execution: Execution = Execution(),
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adds evolution cycles to any optax optimizer.

    Every step is a step of `base`. On steps N, 2N, ... (N = `evolve_every`) the same
    `update` also runs a cycle around the parameters that the base step leads to, the
    parent: members are the parent plus noise, `value_fn` scores each of them with a
    forward pass, the best recombine into a child, and the update returned leads to the
    child, to the best elite or to the parent.

    `update` takes `value_fn` as an extra argument: `update(grads, state, params,
    value_fn=fn, accept_value_fn=None, base_value_fn=None, evolve=None, **extra)`.

    * `value_fn(params, **kw)` returns a real scalar, at least float32, lower is better; with
      `aux`, a tuple of that and of what else is to be told.
      It is never differentiated and traced once; outside of `jax.jit` once a cycle, to find the
      program that an earlier cycle compiled. It gets all of `extra` if it has `**kw`, else
      those that its signature names. Where that names `generation` it gets the index of the
      generation, int32 `[]`, to score each generation, all its members alike, on a minibatch
      of its own; where it names `base_state` the state of `base` after the step, for bases
      whose parameters are not those to evaluate. A NaN or infinite value counts as worst.
    * `accept_value_fn`, the same kind of function, on data that `value_fn` does not see: it
      takes the place of `value_fn` where `accept` compares, so that what was selected for
      the luck of its batch is not taken.
    * `base_value_fn`, the objective of a `base` that evaluates one itself, such as a line
      search; None for `value_fn`. It must be what the gradients are of: along the gradient of
      a loss, a line search on the loss after rounding climbs.
    * `evolve` is None to let the step counter decide in the compiled program, or True or
      False to decide when the step is traced. With False `value_fn` may be left out.
    * `extra` is also passed to `base`, as far as that takes it.

    Args:
        base: the optimizer that steps.
        evolve_every: steps between cycles.
        population_size: members evaluated in a cycle, the parent included; at least 2.
        generations: rounds of mutation, selection and recombination in a cycle, each around
            what the one before chose.
        sigma: standard deviation of the noise, or an optax schedule of the cycle index
            (0, 1, ...): a fraction of each leaf's root mean square or, where `noise` is not
            relative, in units of the parameters.
        noise: what members are set apart by: `noise.gaussian()`, `noise.low_rank()`, or a
            `noise.Noise` of one's own.
        antithetic: whether members come in mirrored pairs, parent + noise and parent -
            noise, of one draw. `population_size` is then even, and the parent, which
            belongs to no pair, is evaluated besides.
        recombine: what each member weighs in the child: of the best ones `recombine.mean()`,
            `recombine.softmax()` or `recombine.elite_weights(fn)`, of all members
            `recombine.centered_rank()` or `recombine.member_weights(fn)`.
        es_optimizer: an optax optimizer that steps from the parent to the child. Its gradient is
            -sum of weight * (member - parent), at the parent. The default, `optax.sgd(1.0)`, goes
            to parent + sum and keeps no state. `optax.sgd(0.5)` goes half of the way. An
            evolution strategy is `evolve(optax.set_to_zero(), recombine=centered_rank(),
            es_optimizer=optax.adam(1e-2), accept=accept.always(), ...)`. The gradient shrinks
            with sigma: if sigma decays, put
            `optax.scale_by_schedule(lambda generation: 1 / sigma(generation) ** 2)` before Adam.
            The optimizer sees the mutating leaves, in float32 or wider. `state.strategy_state`
            keeps its state; a child that is not taken does not change it.
        accept: the rule that ends a generation: `accept.best()`, `accept.improved()`,
            `accept.always()`, or an `accept.Accept` of your own. If no member has a finite
            fitness, the parent is taken.
        reset_base: whether the moments of `base` start anew after a cycle that left the
            parent, with the counts that correct their bias: what is shaped like the parameters
            and starts the same everywhere. All else goes on: schedules, other counters, keys,
            learned scales, hyperparameters, cycles of an `evolve` inside. Or a function of the
            state and of a fresh one, `base.init` of the new parameters, that returns the state to
            go on with. The value and gradient that a line search keeps for its next step are
            forgotten in any case.
        mutable: which leaves mutate: a pytree of bools that is a prefix of the
            parameters, or a callable of the parameters that returns one; None for all but those
            that `base` freezes: whose update, as traced, cannot depend on any gradient. Integer
            leaves never do.
        aux: where `value_fn` returns (fitness, aux), a pytree of arrays or of
            `jax.ShapeDtypeStruct` like that second part, as `jax.eval_shape(value_fn, params)[1]`
            is; None where it returns the fitness alone. An example and no flag, for the state is
            made before any evaluation. `state.info.aux` then holds that of the parent, the best
            member and the child, and the sum over all evaluations: steps of an environment, for
            example. Over `axis_name` floats are averaged, as the fitness is, and what is counted,
            in integers, is added up.
        execution: how a cycle runs, never what it finds: where elites live, how many members
            are evaluated at a time, over which devices; see `Execution`.
        key: int seed of 32 bits, or a threefry key, which may be traced. Noise depends on the
            key, the cycle, the member and the position of the leaf alone. `init` puts it into
            the state, and `update` reads it there: for an ensemble under `jax.vmap`, whose models
            would all get the same noise, make the states with a key for each,
            `jax.vmap(lambda key, params: evolve(base, key=key).init(params))(keys, models)`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `EvolveState`. On a step
        without a cycle the updates are those of `base`, and on all steps they have the dtypes of
        these. Where such a dtype is below float32, members and children are evaluated at the
        parameters that an update of it leads to, so that `optax.apply_updates` lands exactly on
        what was evaluated. Derivatives, of a learning rate for example, pass through a step as
        through one of `base`; where a cycle left the parent, what it chose is a constant.

    Raises:
        TypeError: an argument is of the wrong type; at `update`, `value_fn` is missing or
            not callable, or returns something other than a real scalar of at least
            float32, `evolve` is traced, or an extra argument is misspelt.
        ValueError: an argument is out of range; at `update`, `params` is missing, or
            `mutable` does not fit them; `state` is that of another base; an axis of `execution`
            is not mapped, is no axis of the mesh, or has more devices than there are members; an
            axis that is mapped is not named, where JAX does not notice that replicas drift apart;
            `noise`, `recombine` or `reset_base` return what is none.

    Cost:
        A step without a cycle costs a step of `base`. A generation costs `population_size`
        forward passes with `accept.always()`, else one more, for the child, and another one if
        antithetic, for the parent; and `population_size - 1` draws of noise,
        half of `population_size` if antithetic: a normal number for every parameter, or of low
        rank `rank * (rows + columns)` of them for every matrix. `accept_value_fn` adds two
        forward passes, three with `accept.best()`. What recombines is read back or drawn again,
        see `Execution`; rules that weigh all members and noise of low rank store none in any
        mode: what weighs something is drawn again, into the sum. If the best member is taken, it
        is drawn again. No mode stores or moves the parent. Device memory: the updates of `base`,
        and beside them the active members or one sum, whatever the population size; the parent
        too while members of low rank are evaluated, and with `generations` above 1.
        Leaves of at most 2**15 numbers, all of them together, are held up to nine times, and whole
        on each device where XLA decides how they are divided.
        Under `jax.vmap` of the optimizer a cycle runs on the steps on which any is due. A jitted
        step takes longer to compile than that of `base`: `benchmarks/README.md` has a table.
        Outside of `jax.jit` `value_fn` is traced on every cycle, and what it was compiled to is
        kept.

    References:
        Xue et al., `Evolutionary Gradient Descent for Non-convex Optimization
        <https://doi.org/10.24963/ijcai.2021/443>`_, 2021; Cui et al., `Evolutionary
        Stochastic Gradient Descent for Optimization of Deep Neural Networks
        <https://arxiv.org/abs/1810.06773>`_, 2018. Low-rank noise: Sarkar et al.,
        `Evolution Strategies at the Hyperscale <https://arxiv.org/abs/2511.16652>`_, 2025. An
        optimizer for the step: Salimans et al., `Evolution Strategies as a Scalable Alternative
        to Reinforcement Learning <https://arxiv.org/abs/1703.03864>`_, 2017.

    Example:
        A step function has no gradient, but a cycle can select on it.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve, noise
        >>> def loss(x): return jnp.sum((x - 0.7) ** 2)
        >>> def rounded_loss(x): return loss(jnp.round(x))
        >>> tx = evolve(
        ...   optax.adam(1e-2), evolve_every=5, sigma=0.5, noise=noise.gaussian(relative=False))
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> for _ in range(10):
        ...   grads = jax.grad(loss)(params)
        ...   updates, state = tx.update(grads, state, params, value_fn=rounded_loss)
        ...   params = optax.apply_updates(params, updates)
        >>> int(state.cycle)
        2
        >>> bool(rounded_loss(params) <= state.info.parent_fitness)
        True
    """
    base = _checks.check_base(base)
    always_due = _checks.check_interval(evolve_every) == 1
    _checks.check_key(key)
    _checks.check_static("reset_base", reset_base, "bool or function")
    if not callable(reset_base):
        _checks.check_flag("reset_base", reset_base)
    for name, operator, kind, fix in (
        ("noise", noise, Noise, "write `noise.gaussian()`, or subclass `noise.Noise`"),
        ("recombine", recombine, Recombine, "write `recombine.mean()` or another of that module"),
        ("accept", accept, Accept, _fix_of_accept(accept)),
        ("execution", execution, Execution, 'write `Execution(memory="replay")`, for example'),
    ):
        _checks.check_operator(name, operator, kind, fix)
    _checks.check_hashable("noise", noise)
    _checks.check_aux(aux)
    if es_optimizer is not STRAIGHT:
        es_optimizer = _checks.check_base(es_optimizer, "es_optimizer")
    unchecked = CycleSpec(
        population_size=population_size,
        generations=generations,
        sigma=sigma,
        noise=noise,
        antithetic=antithetic,
        recombine=recombine,
        es_optimizer=es_optimizer,
        accept=accept,
        mutable=mutable,
        execution=execution,
        aux=auxiliary.shapes_of(aux),
    )
    spec: CycleSpec = _checks.check_spec(unchecked)
    programs = Programs()
    frozen = Frozen()

    def init_fn(params: optax.Params) -> EvolveState:
        mutating_leaves(params, spec.mutable)
        return EvolveState(
            count=jnp.zeros([], jnp.int32),
            cycle=jnp.zeros([], jnp.int32),
            key_data=_checks.make_key_data(key),
            base_state=base.init(params),
            info=cycle.no_cycle_yet(spec.aux),
            strategy_state=strategy.strategy_state_of(spec, params),
        )

    def update_fn(
        updates: optax.Updates,
        state: EvolveState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        accept_value_fn: Callable[..., Any] | None = None,
        base_value_fn: Callable[..., Any] | None = None,
        evolve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EvolveState]:
        _check_state(state, spec)
        evolve = _checks.check_update(
            params, value_fn, accept_value_fn, base_value_fn, evolve, accept=spec.accept
        )
        if evolve is None:
            warn_inside_multi_steps()
        functions = {
            "value_fn": value_fn,
            "accept_value_fn": accept_value_fn,
            "base_value_fn": base_value_fn,
        }
        arguments.check_spelling(extra_args, filter(None, functions.values()))
        has_aux = spec.aux is not None
        base_args = _base_args(base, state.base_state, functions, evolve, extra_args, has_aux)
        with advice_on_state(base, state.base_state, params):
            base_updates, base_state = base.update(updates, state.base_state, params, **base_args)
        count = optax.safe_increment(state.count)
        if evolve is False:
            return base_updates, state._replace(count=count, base_state=base_state)

        strategy.check_strategy_state(spec, state.strategy_state, params)
        # Always true where a cycle is certain, which XLA cannot know: every cycle is a
        # program of its own behind the same boundary and rounds in the same way.
        certain = evolve or always_due
        due = ~xla.opaque_false(count) if certain else is_due(count, evolve_every)
        assert value_fn is not None  # narrows the type: checked above
        objectives = Objectives(value_fn, accept_value_fn, extra_args, base_state)
        mutating = mutating_leaves(params, spec.mutable, base_updates)
        if spec.mutable is None:
            moving = frozen.moving(base, updates, state.base_state, params, base_args)
            mutating = tuple(at for at in mutating if at in moving)
        check_axes(spec.execution)
        check_population_axis(
            spec.execution, spec.population_size, spec.antithetic, params, extra_args
        )
        step = {
            "params": params,
            "base_updates": base_updates,
            # In the dtypes of a cycle, for a state that was cast or made under another x64.
            "info": cycle.in_dtypes(state.info, cycle.info_like(spec.aux)),
            "key_data": state.key_data,
            "cycle": state.cycle.astype(jnp.int32),
            "strategy_state": state.strategy_state,
        }
        if _is_traced((due, step, extra_args)) or not due:
            ran = cycle.run_cycle_if(due, spec, mutating, objectives, **step)
        else:
            ran = programs.run_cycle(spec, mutating, objectives, **step)
        updates, jumped, info, strategy_state = ran
        base_state = forget_the_point(base_state, jumped)
        if reset_base:
            base_state = reset_after_jump(reset_base, base, base_state, params, updates, jumped)
        return updates, EvolveState(
            count=count,
            cycle=state.cycle + due.astype(state.cycle.dtype),
            key_data=state.key_data,
            base_state=base_state,
            info=cycle.in_dtypes(info, state.info),
            strategy_state=strategy_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_state(state: Any, spec: CycleSpec) -> None:
    """The state of an optimizer like this one: what a checkpoint gives back may be another."""
    if not isinstance(state, EvolveState):
        raise TypeError(
            f"`state` must be an EvolveState, got {type(state).__name__}: restore it into the "
            "structure of `tx.init(params)`."
        )
    expected: Any = jax.tree.structure(cycle.info_like(spec.aux).aux)
    found: Any = jax.tree.structure(state.info.aux)
    if found != expected:
        raise ValueError(
            f"`state` must hold what `aux` is like, got {found} where that is {expected}: make it "
            "with `tx.init(params)` of this optimizer."
        )


def _fix_of_accept(accept: Any) -> str:
    """What to write instead; the strings that name a rule are the first guess of many."""
    is_named = isinstance(accept, str) and accept in ("always", "best", "improved")
    name = accept if is_named else "best"
    return f"write `accept.{name}()`, or subclass `accept.Accept`"


def _base_args(
    base: optax.GradientTransformationExtraArgs,
    base_state: optax.OptState,
    functions: dict[str, Callable[..., Any] | None],
    evolve: bool | None,
    extra_args: dict[str, Any],
    has_aux: bool,
) -> dict[str, Any]:
    """What the base gets of the arguments of `update`.

    What is meant for an `evolve` only where there is one inside: line searches refuse it.
    """
    args: dict[str, Any] = {}
    objective = functions["base_value_fn"] or functions["value_fn"]
    if _holds_evolve(base_state):
        args = {name: fn for name, fn in functions.items() if fn is not None}
        args["evolve"] = evolve
    elif objective is not None:
        added = {"generation": jnp.int32(0), "base_state": base_state}
        has_aux = has_aux and functions["base_value_fn"] is None
        args["value_fn"] = arguments.for_line_search(objective, extra_args, added, has_aux=has_aux)
    return arguments.taken_by(base.update, extra_args | args, behind=3)


def _holds_evolve(state: optax.OptState) -> bool:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, EvolveState))
    return any(isinstance(node, EvolveState) for node in nodes)


def _is_traced(tree: Any) -> bool:
    """Whether this is part of a program, of `jax.jit` for example."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
