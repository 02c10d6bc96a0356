"""`evolve`: cycles around the steps of any optax optimizer; `egd`: around those of SGD."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, ParamSpec

import jax
import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_base, check_flag, check_static
from egd_optax._key import check_key
from egd_optax._programs import Programs
from egd_optax._settings import check_interval, check_window, checked_spec
from egd_optax._step import Step
from egd_optax.accept import Accept
from egd_optax.base.dependence import BlackBox
from egd_optax.base.integers import hidden_from
from egd_optax.base.reset import Reset
from egd_optax.core.cycle import run_cycle_if
from egd_optax.core.spec import STRAIGHT, CycleSpec
from egd_optax.execution import Execution
from egd_optax.noise.interface import Noise, moves_integers
from egd_optax.recombine import Recombine
from egd_optax.sigma import Sigma

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
ScalarOrSchedule = jax.typing.ArrayLike | Schedule
Refine = Callable[..., optax.Params]
P = ParamSpec("P")


def _settings_by_name(
    make: Callable[P, optax.GradientTransformationExtraArgs],
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    """The same function, which refuses settings without `**`: Python's error names no fix."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> optax.GradientTransformationExtraArgs:
        for settings in args:
            if isinstance(settings, Mapping):
                raise TypeError(
                    f"settings must be passed by name, got {settings!r}: write `**` before them, "
                    f"`{make.__name__}(..., **presets.metric())` for example."
                )
        return make(*args, **kwargs)

    return made


@_settings_by_name
def evolve(
    base: optax.GradientTransformation,
    *,
    evolve_every: int = 200,
    window: tuple[int, int | None] | None = None,
    population_size: int = 8,
    generations: int = 1,
    sigma: ScalarOrSchedule | Sigma = 0.02,
    noise: Noise = noise.gaussian(),
    antithetic: bool = False,
    recombine: Recombine = recombine.mean(),
    es_optimizer: optax.GradientTransformation = STRAIGHT,
    accept: Accept = accept.best(),
    reset_base: bool | Reset = False,
    mutable: Any = None,
    bounds: tuple[Any, Any] | None = None,
    refine: Refine | None = None,
    aux: Any = None,
    execution: Execution = Execution(),
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adds evolution cycles to any optax optimizer.

    Every step is a step of `base`. On steps N, 2N, ... (N = `evolve_every`) the same
    `update` also runs a cycle. It starts from the parent, the parameters after the base
    step. Members are the parent plus noise. `value_fn` scores each of them with a forward
    pass, and the best recombine into a child. The update returned leads to the child, to
    the best elite or to the parent.

    `update` takes `value_fn` as an extra argument: `update(grads, state, params,
    value_fn=fn, accept_value_fn=None, base_value_fn=None, evolve=None, **extra)`.

    * `value_fn(params, **kw)` returns a real scalar, at least float32, lower is better. With
      `aux` it returns `(fitness, aux)`.
      It is never differentiated and traced once. Outside of `jax.jit` it is traced once a
      cycle, to find the program that an earlier cycle compiled. It gets all of `extra` if it
      has `**kw`, else those that its signature names. If the signature names `generation`, it
      gets the index of the generation, int32 `[]`, the same for all members of a generation.
      It can then score each generation on another minibatch. If the signature names
      `base_state`, it gets the state of `base` after the step, for bases whose parameters are
      not the ones to evaluate. A NaN or infinite value counts as worst.
    * `accept_value_fn` is the same kind of function, on data that `value_fn` does not see. If
      given, `accept` compares by it instead of `value_fn`. A candidate that only had luck
      with its batch is then not taken.
    * `base_value_fn` is the objective of a `base` that evaluates one itself, as a line search
      does; None for `value_fn`. It must be the loss that `grads` belong to. A line search on
      another loss, on the loss after rounding for example, may step uphill.
    * `evolve` is None to let the step counter decide in the compiled program, or True or
      False to decide when the step is traced. With False `value_fn` may be left out.
    * `extra` is also passed to `base`, as far as that takes it.

    `grads` is None if `base` looks at no gradients, as `optax.set_to_zero()` does. No zeros are
    then held.

    Args:
        base: the optimizer that steps.
        evolve_every: steps between cycles.
        window: a pair of ints: steps up to the first one, and behind the second one, have no
            cycle. `(0, 1000)` has cycles on the first 1000 steps alone, `(500, None)` behind the
            first 500. None for all steps.
        population_size: members evaluated in a generation; at least 2. The parent is one of them,
            but comes in addition to mirrored pairs.
        generations: rounds of mutation, selection and recombination in a cycle. Each round
            starts from the choice of the round before.
        sigma: standard deviation of the noise, or an optax schedule of the cycle index
            (0, 1, ...). It is a fraction of each leaf's root mean square. If `noise` is not
            relative, it is in units of the parameters. `sigma.one_fifth` and `sigma.path_length`
            adapt it.
        noise: the distribution of the perturbations. Pass `noise.gaussian()`,
            `noise.low_rank()`, or your own `noise.Noise`.
        antithetic: whether members come in mirrored pairs, parent + noise and parent -
            noise, of one draw. `population_size` is then even. The parent belongs to no pair
            and is evaluated in addition.
        recombine: the weight of each member in the child. `recombine.mean()`,
            `recombine.softmax()` and `recombine.elite_weights(fn)` weigh the best members.
            `recombine.centered_rank()` and `recombine.member_weights(fn)` weigh all members.
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
        reset_base: whether to reset the moments of `base` after a cycle that left the parent,
            with the counts that correct their bias. Moments are arrays that are shaped like
            the parameters and start the same everywhere. All else goes on: schedules, other
            counters, keys, learned scales, hyperparameters, cycles of an `evolve` inside.
            A function decides itself: it maps the state and a fresh one, `base.init` of the
            new parameters, to the next state. A line search always forgets the value and the
            gradient that it keeps for its next step.
        mutable: which leaves mutate. Pass a pytree of bools that is a prefix of the
            parameters, or a callable of the parameters that returns one. With None all leaves
            mutate but those that `base` freezes. It freezes a leaf if the traced update of it
            cannot depend on any gradient. Integer leaves mutate only if this selects them
            and `noise` moves them, as `noise.lattice()` does.
        bounds: a pair, the least and the greatest values of the parameters. Either is a number, or
            a pytree that is a prefix of the parameters. Its leaves are numbers, or arrays that
            broadcast to a leaf; infinite where there is no bound. Members are reflected into the
            bounds, and a child beyond them is clipped. The base is not bound: put a projection
            into it, as `optax.chain(optax.adam(1e-3), optax.keep_params_nonnegative())`. A
            parent beyond the bounds stays where it is. None for no bounds.
        refine: a function `refine(params, key, i)` by which members learn, in gradient steps for
            example. It returns the parameters of member `i`, int32 `[]`, after learning. Member
            `i` is scored, recombines and is deployed as these. The key is a threefry key for
            `jax.random`. The function gets those of `extra` that its signature names, a batch for
            example. Leaves that do not mutate stay as they are. If a result is NaN or infinite
            anywhere, the member stays as it was drawn. Over `axis_name` results are averaged.
            Parent and child do not learn. Noise and sigma that adapt go by where members were
            drawn. None for members that do not learn.
        aux: None if `value_fn` returns the fitness alone. If it returns (fitness, aux), pass a
            pytree of arrays or of `jax.ShapeDtypeStruct` like that second part, as
            `jax.eval_shape(value_fn, params)[1]` is. Pass an example: `init` must know its
            structure before any evaluation. `state.info.aux` then holds the aux of the parent,
            the best member and the child, and the sum over all evaluations. A simulator can
            report its steps in this way. Over `axis_name` floats are averaged, as the fitness
            is, and integers are added up.
        execution: how a cycle runs, never what it finds. It says where elites live, how many
            members are evaluated at a time, and over which devices; see `Execution`.
        key: int seed of 32 bits, or a threefry key, which may be traced. Noise depends on the
            key, the cycle, the member and the position of the leaf alone. `init` puts the key
            into the state, and `update` reads it there. In an ensemble under `jax.vmap` all
            models would get the same noise. Make each state with another key:
            `jax.vmap(lambda key, params: evolve(base, key=key).init(params))(keys, models)`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `EvolveState`. On a step
        without a cycle the updates are those of `base`, and on all steps they have the dtypes of
        these. An update of a dtype below float32 reaches only some parameters. Members and
        children are evaluated at these, so that `optax.apply_updates` lands exactly on an
        evaluated point. Derivatives, of a learning rate for example, pass through a step as
        through one of `base`. If a cycle left the parent, its choice is a constant.

    Raises:
        TypeError: an argument is of the wrong type. At `update`, `value_fn` is missing or
            not callable, or returns something other than a real scalar of at least
            float32. At `update`, `evolve` is traced, or an extra argument is misspelt.
        ValueError: an argument is out of range. At `update`, `params` is missing, or
            `mutable` does not fit them. `state` is that of another base. An axis of
            `execution` is not mapped, is no axis of the mesh, or has more devices than there
            are members. `refine` returns other shapes or dtypes. A mapped axis is not named, and
            JAX does not notice that replicas drift apart. `noise`, `recombine` or `reset_base`
            return an invalid value.

    Cost:
        A step without a cycle costs a step of `base` if `evolve=False`. If the compiled program
        decides, it took 1.0 to 2.9 times as long on a CPU, most for small batches and networks. A
        generation costs `population_size` forward passes with `accept.always()`. Other rules add
        one for the child, and another one for the parent if antithetic. A generation draws noise
        `population_size - 1` times, or half of `population_size` if antithetic. A draw is a normal
        number for every parameter, or of low rank `rank * (rows + columns)` of them for every
        matrix. `accept_value_fn` adds two forward passes, three with `accept.best()`. Members that
        recombine are read back or drawn again, see `Execution`. Rules that weigh all members and
        noise of low rank store no member in any mode. Each member with a weight is then drawn
        again, into the sum. If the best member is taken, it is drawn again. No mode stores or moves
        the parent. Device memory holds the updates of `base`, and the active members or one sum,
        whatever the population size. It also holds the parent while members of low rank are
        evaluated, and with `generations` above 1. All leaves of at most 2**15 numbers are together
        held up to nine times, each in rows of 64 numbers. If XLA decides how they are divided, each
        device holds them whole. A leaf with `bounds` is a piece of the program, each of its members
        is formed, and both of a mirrored pair are drawn. So are all leaves with `refine`. Members
        then learn one after another, and elites are kept whole; if a rule weighs all members, all
        are. Members that are not kept learn again. These are members with `memory="replay"`, above
        32 on the host, or with a `population_axis`, and the best for `accept_value_fn`. Under
        `jax.vmap` of the optimizer a cycle runs on the steps on which any is due. A jitted step
        takes longer to compile than that of `base`: `benchmarks/README.md` has a table. Outside of
        `jax.jit` `value_fn` is traced on every cycle, and its compiled program is kept.

    References:
        Xue et al., `Evolutionary Gradient Descent for Non-convex Optimization
        <https://doi.org/10.24963/ijcai.2021/443>`_, 2021; Cui et al., `Evolutionary
        Stochastic Gradient Descent for Optimization of Deep Neural Networks
        <https://arxiv.org/abs/1810.06773>`_, 2018, whose members learn by `refine`. Low-rank
        noise: Sarkar et al., `Evolution Strategies at the Hyperscale
        <https://arxiv.org/abs/2511.16652>`_, 2025. An optimizer for the step: Salimans et al.,
        `Evolution Strategies as a Scalable Alternative to Reinforcement Learning
        <https://arxiv.org/abs/1703.03864>`_, 2017.

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
    base = check_base(base)
    check_interval(evolve_every)
    window = check_window(window)
    check_key(key)
    check_static("reset_base", reset_base, "bool or function")
    if not callable(reset_base):
        check_flag("reset_base", reset_base)
    spec = checked_spec(
        CycleSpec(
            population_size=population_size,
            generations=generations,
            sigma=sigma,
            noise=noise,
            antithetic=antithetic,
            recombine=recombine,
            es_optimizer=es_optimizer,
            accept=accept,
            mutable=mutable,
            bounds=bounds,
            refine=refine,
            execution=execution,
            aux=aux,
        )
    )
    if moves_integers(spec.noise):
        base = hidden_from(base, mutable)
    step = Step(
        base,
        spec,
        evolve_every,
        window,
        reset_base,
        key,
        Programs(run_cycle_if),
        BlackBox(base),
    )
    return optax.GradientTransformationExtraArgs(step.init, step.update)


@_settings_by_name
def egd(  # noqa: D417  # its other arguments are those of `evolve`
    learning_rate: ScalarOrSchedule,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    accumulator_dtype: Any = None,
    evolve_every: int = 200,
    window: tuple[int, int | None] | None = None,
    population_size: int = 8,
    generations: int = 1,
    sigma: ScalarOrSchedule | Sigma = 0.02,
    noise: Noise = noise.gaussian(),
    antithetic: bool = False,
    recombine: Recombine = recombine.mean(),
    es_optimizer: optax.GradientTransformation = STRAIGHT,
    accept: Accept = accept.best(),
    reset_base: bool | Reset = False,
    mutable: Any = None,
    bounds: tuple[Any, Any] | None = None,
    refine: Refine | None = None,
    aux: Any = None,
    execution: Execution = Execution(),
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Evolutionary Gradient Descent: SGD every step, a cycle every `evolve_every` steps.

    Short for `evolve(optax.chain(optax.add_decayed_weights(weight_decay),
    optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype)), ...)`. See
    `egd_optax.evolve` for the other arguments, for `update`, for what is raised and for
    the cost.

    Args:
        learning_rate: of the SGD step, a float or an optax schedule of the step.
        momentum: decay of the momentum, in [0, 1); None for none.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: L2 coefficient, added to the gradient times the parameters, a float
            or an optax schedule of the step.
        accumulator_dtype: dtype of the momentum; None for that of the parameters.
        evolve_every: see `evolve`, as for all arguments after it. The defaults are the same.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `EvolveState`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import egd
        >>> def loss(params): return jnp.sum((params["w"] - 1.0) ** 2)
        >>> tx = egd(0.1, momentum=0.9, evolve_every=10)
        >>> params = {"w": jnp.zeros(4)}
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...   grads = jax.grad(loss)(params)
        ...   updates, state = tx.update(grads, state, params, value_fn=loss)
        ...   return optax.apply_updates(params, updates), state
        >>> for _ in range(60):
        ...   params, state = step(params, state)
        >>> int(state.cycle), bool(loss(params) < 0.1)
        (6, True)
    """
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            f"`learning_rate` must be a number or a schedule, got {learning_rate!r}: to add cycles "
            "to an optimizer write `evolve(optimizer, ...)`."
        )
    base = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
    )
    return evolve(
        base,
        evolve_every=evolve_every,
        window=window,
        population_size=population_size,
        generations=generations,
        sigma=sigma,
        noise=noise,
        antithetic=antithetic,
        recombine=recombine,
        es_optimizer=es_optimizer,
        accept=accept,
        reset_base=reset_base,
        mutable=mutable,
        bounds=bounds,
        refine=refine,
        aux=aux,
        execution=execution,
        key=key,
    )
