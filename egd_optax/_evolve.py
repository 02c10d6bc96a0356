"""`evolve`: cycles around the steps of any optax optimizer; `egd`: around those of SGD."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from egd_optax import accept, noise, recombine
from egd_optax._checks import check_base, check_flag, check_static
from egd_optax._programs import Programs
from egd_optax._settings import check_interval, check_key, checked_spec
from egd_optax._step import Step
from egd_optax.accept import Accept
from egd_optax.base.dependence import Frozen
from egd_optax.base.reset import Reset
from egd_optax.core.cycle import run_cycle_if
from egd_optax.core.spec import STRAIGHT, CycleSpec
from egd_optax.execution import Execution
from egd_optax.noise import Noise
from egd_optax.recombine import Recombine

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
ScalarOrSchedule = jax.typing.ArrayLike | Schedule


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
    base = check_base(base)
    check_interval(evolve_every)
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
            execution=execution,
            aux=aux,
        )
    )
    step = Step(base, spec, evolve_every, reset_base, key, Programs(run_cycle_if), Frozen())
    return optax.GradientTransformationExtraArgs(step.init, step.update)


def egd(
    learning_rate: ScalarOrSchedule,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    accumulator_dtype: Any = None,
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
        evolve_every: steps between cycles.
        population_size: members evaluated in a cycle, the parent included.
        generations: rounds of a cycle.
        sigma: standard deviation of the noise, a fraction of each leaf's root mean square, or
            a schedule of the cycle index.
        noise: what members are set apart by.
        antithetic: whether members come in mirrored pairs.
        recombine: what each member weighs in the child.
        es_optimizer: an optax optimizer that steps from the parent to the child; the default,
            `optax.sgd(1.0)`, goes to parent + weighted sum.
        accept: the rule that ends a generation.
        reset_base: whether the momentum starts anew after a jump, or a function that decides
            what does.
        mutable: which leaves mutate.
        aux: what `value_fn` returns beside the fitness is like this; None if nothing.
        execution: where elites live, how many members at a time, over which devices.
        key: int seed, or a threefry key.

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
    base = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
    )
    return evolve(
        base,
        evolve_every=evolve_every,
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
        aux=aux,
        execution=execution,
        key=key,
    )
