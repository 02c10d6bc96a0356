"""`evolve`: the base optimizer every step, a cycle when one is due."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax import _cycle, _validate
from egd_optax._accumulation import warn_inside_multi_steps

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
ScalarOrSchedule = jax.typing.ArrayLike | Schedule
Recombine = str | Callable[[jax.Array], jax.Array]


# The arguments that shape the program or are functions, for `optax.inject_hyperparams`:
# it would trace the numbers and take the functions for schedules of the step.
STATIC_ARGS = (
    "evolve_every",
    "population_size",
    "elite_fraction",
    "generations",
    "candidate_batch_size",
    "rank",
    "recombine",
    "mutable",
    "mesh",
)


class EvolveState(NamedTuple):
    """State of `evolve`; scalars beside the state of the base optimizer.

    Attributes:
        count: int32 `[]`, steps taken.
        cycle: int32 `[]`, cycles run.
        key_data: uint32 `[2]`, the raw threefry key that all noise derives from; raw,
            because typed keys do not pass through serialization or tree arithmetic.
        base_state: state of the base optimizer.
        info: what the latest cycle did, `CycleInfo`.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's states
    cycle: jax.Array
    key_data: jax.Array
    base_state: optax.OptState
    info: _cycle.CycleInfo


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
    due = step % evolve_every == 0
    return due if isinstance(due, jax.Array) else bool(due)


def evolve(
    base: optax.GradientTransformation,
    *,
    evolve_every: int = 200,
    population_size: int = 8,
    elite_fraction: float = 0.25,
    antithetic: bool = False,
    generations: int = 1,
    candidate_batch_size: int = 1,
    sigma: ScalarOrSchedule = 0.02,
    relative_sigma: bool = True,
    min_scale: jax.typing.ArrayLike = 1e-3,
    noise: str = "full_rank",
    rank: int = 1,
    recombine: Recombine = "mean",
    recombine_step: jax.typing.ArrayLike = 1.0,
    temperature: jax.typing.ArrayLike = 1.0,
    accept: str = "best",
    reset_base: bool = False,
    mutable: Any = None,
    memory: str = "host",
    axis_name: str | tuple[str, ...] | None = None,
    population_axis: str | None = None,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adds evolution cycles to any optax optimizer.

    Every step is a step of `base`. On steps N, 2N, ... (N = `evolve_every`) the same
    `update` also runs a cycle around the parameters that the base step leads to, the
    parent: members are the parent plus noise, `value_fn` scores each of them with a
    forward pass, the best recombine into a child, and the update returned leads to the
    child, to the best elite or to the parent.

    `update` takes `value_fn` as an extra argument: `update(grads, state, params,
    value_fn=fn, accept_value_fn=None, evolve=None, **extra)`.

    * `value_fn(params, **kw)` returns a real scalar, at least float32, lower is better.
      It is never differentiated and traced once. It gets those of `extra` that its
      signature names, and where it names `generation` the index of the generation, int32
      `[]`: to score each generation, all its members alike, on a minibatch of its own. A
      NaN or infinite value counts as worst.
    * `accept_value_fn`, the same kind of function, on data that `value_fn` does not see: it
      takes the place of `value_fn` where `accept` compares, so that what was selected for
      the luck of its batch is not taken.
    * `evolve` is None to let the step counter decide in the compiled program, or True or
      False to decide when the step is traced. With False `value_fn` may be left out.
    * all of it is also passed to `base`.

    Args:
        base: the optimizer that steps.
        evolve_every: steps between cycles.
        population_size: members evaluated in a cycle, the parent included.
        elite_fraction: share of the population that recombines, in (0, 1]: the best
            k = ceil(elite_fraction * population_size). Rules that weigh all members do
            without.
        antithetic: whether members come in mirrored pairs, parent + noise and parent -
            noise, of one draw. `population_size` is then even, and the parent, which
            belongs to no pair, is evaluated besides.
        generations: rounds of mutation, selection and recombination in a cycle, each around
            what the one before chose.
        candidate_batch_size: members evaluated at a time, under `jax.vmap`: more work for
            an accelerator that one small forward pass leaves idle, and memory for as many
            members and their activations. Members are the same to the bit, fitness within
            the rounding of a batched program.
        sigma: standard deviation of the noise, or an optax schedule of the cycle index
            (0, 1, ...): a fraction of each leaf's root mean square, or with
            `relative_sigma=False` in units of the parameters.
        relative_sigma: whether `sigma` is relative to the root mean square of a leaf.
        min_scale: floor of that root mean square, in units of the parameters, so that
            leaves initialised to zero move.
        noise: "full_rank": an independent normal number for every parameter. "low_rank":
            A B^T / sqrt(rank) for leaves of two axes or more, where A has a row for every
            index of all axes but the last (of a kernel: height, width and input channels;
            of an embedding: the vocabulary) and B for every index of the last; in full for
            vectors, scalars, and where that takes no more numbers. The standard deviation
            of every entry is the same. Far cheaper to draw, see Cost.
        rank: of the low-rank noise; higher is closer to normal noise and dearer.
        recombine: "mean"; "softmax", weights softmax(-fitness / temperature); or a
            callable from the elites' fitness, float `[k]`, best first and +inf for an
            empty place, to weights `[k]`. The child is parent + recombine_step * sum of
            weight * (elite - parent): with weights that sum to one, the weighted mean of the
            elites. Or "centered_rank", which weighs all members: in
            equal steps from the best to the worst, the positive weights to a sum of one and
            the negative ones to minus one.
        recombine_step: how far the child goes.
        temperature: of the softmax, in units of fitness.
        accept: what a cycle ends with. "always": the child. "improved": the child if it
            is better than the parent. "best": the best of child, elites and parent. A
            child without finite fitness is never taken, and ties go to the parent.
        reset_base: whether the state of `base` returns to `base.init` after a cycle that
            left the parent. Schedules and injected hyperparameters stay as they are.
        mutable: which leaves mutate: a pytree of bools that is a prefix of the
            parameters, or a callable of the parameters that returns one; None for all.
            Integer leaves never do.
        memory: where elites live during a cycle. "host": in pinned host memory.
            "device": on the device. "replay": nowhere, they are drawn again from their
            keys, as always with low-rank noise. The result is the same to the bit. On CPU
            "host" and "device" are the same. On an accelerator start with "host" from
            parameters that are committed to their devices (any sharding, or
            `jax.device_put(params, jax.devices()[0])`): JAX commits what a program with two
            memories returns, so that a jitted step that started from uncommitted ones is
            compiled twice.
        axis_name: mapped axes, of `jax.shard_map` or `jax.pmap`, to average fitness over.
        population_axis: an axis to divide the members over, each device evaluating its share.
            In a plain `jax.jit` an axis of the mesh, with parameters that are not sharded over
            it; inside of `jax.shard_map` and `jax.pmap` the name of a mapped axis. Elites are
            drawn again from their keys, whatever `memory` is.
        mesh: the mesh of `population_axis`; None for that of `jax.set_mesh`.
        key: int seed, or a threefry key. Noise depends on the key, the cycle, the member
            and the position of the leaf alone.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `EvolveState`. On a step
        without a cycle the updates have the values of those of `base`. The updates of
        parameters below float32 come in float32, where `evolve` is not False: only then
        does `optax.apply_updates` land on the chosen parameters exactly.

    Raises:
        TypeError: an argument is of the wrong type; at `update`, `value_fn` is missing or
            not callable, or returns something other than a real scalar of at least
            float32, or `evolve` is traced.
        ValueError: an argument is out of range; at `update`, `params` is missing, or
            `mutable` does not fit them; `axis_name` is not mapped; `population_axis` is no axis
            of the mesh, there is no mesh, or there are fewer members than devices along it.

    Cost:
        A step without a cycle costs a step of `base`. A generation costs `population_size
        + 1` forward passes, one more if antithetic, and `population_size - 1` draws of noise,
        half of `population_size` if antithetic: a normal number for every parameter, or
        `rank * (rows + columns)` of them for every matrix. `accept_value_fn` adds two forward
        passes, three with accept="best". "host" moves an elite to the host each time that one
        enters and back once to recombine, "replay" draws k elites again. The rule that weighs
        all members and low-rank noise store none in any mode: what weighs something is drawn
        again, into the sum. Where the best member is taken, it is drawn again, but with
        "device", which has it. No mode stores or moves the parent. Device memory: the updates
        of `base`, and beside them `candidate_batch_size` active members or one sum, whatever
        the population size; the parent too while members of low rank are evaluated, and with
        `generations` above 1. Under `jax.vmap` of the optimizer a cycle runs on the steps on
        which any is due.

    References:
        Xue et al., `Evolutionary Gradient Descent for Non-convex Optimization
        <https://doi.org/10.24963/ijcai.2021/443>`_, 2021; Cui et al., `Evolutionary
        Stochastic Gradient Descent for Optimization of Deep Neural Networks
        <https://arxiv.org/abs/1810.06773>`_, 2018. Low-rank noise: Sarkar et al.,
        `Evolution Strategies at the Hyperscale <https://arxiv.org/abs/2511.16652>`_, 2025.

    Example:
        A step function has no gradient, but a cycle can select on it.

        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> def loss(x): return jnp.sum((x - 0.7) ** 2)
        >>> def rounded_loss(x): return loss(jnp.round(x))
        >>> tx = evolve(optax.adam(1e-2), evolve_every=5, sigma=0.5, relative_sigma=False)
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
    base = _validate.check_base(base)
    always_due = _validate.check_interval(evolve_every) == 1
    _validate.check_key(key)
    spec = _validate.cycle_spec(
        population_size=population_size,
        elite_fraction=elite_fraction,
        antithetic=antithetic,
        generations=generations,
        candidate_batch_size=candidate_batch_size,
        sigma=sigma,
        relative_sigma=relative_sigma,
        min_scale=min_scale,
        noise=noise,
        rank=rank,
        recombine=recombine,
        recombine_step=recombine_step,
        temperature=temperature,
        accept=accept,
        reset_base=reset_base,
        mutable=mutable,
        memory=memory,
        axis_name=axis_name,
        population_axis=population_axis,
        mesh=mesh,
    )

    def init_fn(params: optax.Params) -> EvolveState:
        _cycle.moving_leaves(params, spec.mutable)
        return EvolveState(
            count=jnp.zeros([], jnp.int32),
            cycle=jnp.zeros([], jnp.int32),
            key_data=_validate.make_key_data(key),
            base_state=base.init(params),
            info=_cycle.no_cycle_yet(),
        )

    def update_fn(
        updates: optax.Updates,
        state: EvolveState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        accept_value_fn: Callable[..., Any] | None = None,
        evolve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EvolveState]:
        value_fn, evolve = _validate.check_call(
            params, value_fn, accept_value_fn, evolve, accept=spec.accept
        )
        if evolve is None:
            warn_inside_multi_steps()
        base_args = dict(extra_args, value_fn=value_fn, evolve=evolve)
        if accept_value_fn is not None:
            base_args["accept_value_fn"] = accept_value_fn
        base_updates, base_state = base.update(updates, state.base_state, params, **base_args)
        count = optax.safe_increment(state.count)
        if evolve is False:
            return base_updates, state._replace(count=count, base_state=base_state)

        # Always true where a cycle is certain, which XLA cannot know: every cycle is a
        # program of its own behind the same boundary and rounds in the same way.
        due = count > 0 if evolve or always_due else is_due(count, evolve_every)
        updates, base_state, info = _cycle.run_cycle_if(
            due,
            spec,
            base,
            _cycle.Objectives(value_fn, accept_value_fn, extra_args),
            params=params,
            base_updates=base_updates,
            base_state=base_state,
            info=state.info,
            key_data=state.key_data,
            cycle=state.cycle,
        )
        return updates, EvolveState(
            count=count,
            cycle=state.cycle + due.astype(jnp.int32),
            key_data=state.key_data,
            base_state=base_state,
            info=info,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
