"""`egd`: SGD with evolution cycles, `evolve` around the SGD of optax."""

from typing import Any

import jax
import optax

from egd_optax._evolve import Recombine, ScalarOrSchedule, evolve


def egd(
    learning_rate: ScalarOrSchedule,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    accumulator_dtype: Any = None,
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
        elite_fraction: share of the population that recombines.
        antithetic: whether members come in mirrored pairs.
        generations: rounds of a cycle.
        candidate_batch_size: members evaluated at a time.
        sigma: standard deviation of the noise, a float or a schedule of the cycle index.
        relative_sigma: whether `sigma` is relative to the root mean square of a leaf.
        min_scale: floor of that root mean square.
        noise: "full_rank" or "low_rank".
        rank: of the low-rank noise.
        recombine: "mean", "softmax", "centered_rank", or a callable from fitness
            to weights.
        recombine_step: how far the child goes, 1 for all the way to the weighted sum.
        temperature: of the softmax, in units of fitness.
        accept: "always", "improved" or "best".
        reset_base: whether the momentum is reset after a jump.
        mutable: which leaves mutate.
        memory: where elites live, "host", "device" or "replay".
        axis_name: mapped axes to average fitness over.
        population_axis: the axis that members are divided over.
        mesh: where that axis is.
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
        key=key,
    )
