"""`egd`: SGD with evolution cycles, `evolve` around the SGD of optax."""

from typing import Any

import jax
import optax

from egd_optax import accept, noise, recombine
from egd_optax._evolve import ScalarOrSchedule, evolve
from egd_optax.accept import Accept
from egd_optax.base.reset import Reset
from egd_optax.core.spec import STRAIGHT
from egd_optax.execution import Execution
from egd_optax.noise import Noise
from egd_optax.recombine import Recombine


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
