"""`diagnose`: does the gradient agree with the fitness, and does the fitness repeat?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax import _checks, accept, noise, recombine
from egd_optax._key import make_key_data
from egd_optax._settings import checked_spec
from egd_optax.backend.arithmetic import widen
from egd_optax.base.arguments import taken_by
from egd_optax.base.leaves import aligned, flatten, mutating_leaves
from egd_optax.core.blocks import blocks_of
from egd_optax.core.fitness import Snapshot, fitness_dtype, fitness_of
from egd_optax.core.population import Candidate, generation_key, population_around
from egd_optax.core.spec import STRAIGHT, CycleSpec
from egd_optax.execution import Execution
from egd_optax.noise.interface import Noise


class Diagnosis(NamedTuple):
    """Two correlations over mirrored pairs around some parameters; scalars, from -1 to 1.

    Attributes:
        gradient_correlation: float `[]`, of the fitness differences of pairs with the prediction
            of the gradient. Near 1 the gradient predicts the fitness.
        reliability: float `[]`, of the fitness differences of pairs with those on other samples.
            Near 0 they are luck. NaN without `other_value_fn`.

    Example:
        >>> import jax.numpy as jnp
        >>> from egd_optax.diagnose import diagnose
        >>> params = jnp.ones(4)
        >>> diagnosis = diagnose(jnp.sum, params, jnp.ones(4), other_value_fn=jnp.sum)
        >>> round(float(diagnosis.reliability), 3)
        1.0
    """

    gradient_correlation: jax.Array
    reliability: jax.Array


def diagnose(
    value_fn: Callable[..., Any],
    params: optax.Params,
    grads: optax.Updates,
    *,
    other_value_fn: Callable[..., Any] | None = None,
    pairs: int = 20,
    sigma: float = 0.02,
    noise: Noise = noise.gaussian(),
    key: Any = 0,
    **extra_args: Any,
) -> Diagnosis:
    """Measures at a checkpoint whether cycles can find what a gradient does not.

    Members of a cycle are drawn in mirrored pairs. For each pair `value_fn` says which side is
    better and by how much, and so does the gradient, to first order. If the two agree, the next
    steps find the same as cycles, for less. If the differences do not repeat on other samples, the
    batch is too small for this fitness. The guide says how to read values in between, and how far
    to trust them: the result is a veto, not a promise.

    Args:
        value_fn: the fitness on some samples, as passed to `update`.
        params: pytree of arrays.
        grads: pytree like `params`, the gradient that training follows on the same samples. A leaf
            with None in its place does not mutate.
        other_value_fn: the fitness on as many other samples.
        pairs: mirrored pairs to draw. A correlation c is uncertain by about (1 - c**2) /
            sqrt(pairs).
        sigma: as an argument of `evolve`, a number.
        noise: as an argument of `evolve`.
        key: int seed, or a threefry key.
        **extra_args: as passed to `update`, for those that `value_fn` and `other_value_fn` take.

    Returns:
        The two correlations, around zero; NaN if no pair differs. Costs `2 * pairs` forward passes
        for `value_fn`, as many for `other_value_fn`, and the memory of two members.

    Raises:
        TypeError: an argument is of the wrong type, or `value_fn` returns no real scalar.
        ValueError: an argument is out of range, or no leaf mutates.

    References:
        Correlation of a surrogate gradient with evolution's: Maheswaranathan et al., `Guided
        evolutionary strategies <https://arxiv.org/abs/1806.10230>`_, 2019.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from egd_optax.diagnose import diagnose
        >>> def loss(params): return jnp.sum((params - 0.3) ** 2)
        >>> def coarse(params): return loss(jnp.round(params))
        >>> params = jnp.linspace(-1.0, 1.0, 50)
        >>> diagnosis = diagnose(loss, params, jax.grad(loss)(params))
        >>> bool(diagnosis.gradient_correlation > 0.99)
        True
        >>> diagnosis = diagnose(coarse, params, jax.grad(loss)(params), sigma=0.1)
        >>> bool(diagnosis.gradient_correlation < 0.9)
        True
    """
    pairs = _checks.check_size("pairs", pairs)
    for name, fn in (("value_fn", value_fn), ("other_value_fn", other_value_fn)):
        if fn is not None or name == "value_fn":
            _checks.check_function(name, fn, "of the parameters")
    spec = checked_spec(
        CycleSpec(
            population_size=2 * pairs,
            generations=1,
            sigma=sigma,
            noise=noise,
            antithetic=True,
            recombine=recombine.centered_rank(),
            es_optimizer=STRAIGHT,
            accept=accept.always(),
            mutable=None,
            execution=Execution(),
        )
    )
    mutating = mutating_leaves(params, None, grads)
    if not mutating:
        raise ValueError(
            f"`grads` must have a gradient of a leaf of floats, got {jax.tree.structure(grads)}: "
            "a leaf with None in its place does not mutate."
        )
    functions = [fn for fn in (value_fn, other_value_fn) if fn is not None]
    predicted, found = _differences_around(
        spec, params, grads, mutating, functions, extra_args, make_key_data(key)
    )
    unknown = jnp.full([], jnp.nan, found.dtype)
    return Diagnosis(
        gradient_correlation=_correlation(predicted, found[0]),
        reliability=unknown if len(found) < 2 else _correlation(*found),
    )


def _differences_around(
    spec: CycleSpec,
    params: optax.Params,
    grads: optax.Updates,
    mutating: tuple[int, ...],
    functions: Sequence[Callable[..., Any]],
    extra_args: Mapping[str, Any],
    key_data: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Half the differences between the members of each pair, predicted and measured.

    Args:
        spec: says how members are drawn, in mirrored pairs.
        params: the parameters around which they are drawn.
        grads: the gradient there, a pytree like `params`.
        mutating: positions of the leaves that mutate.
        functions: the fitness, on some samples or others.
        extra_args: their other arguments.
        key_data: uint32 `[2]`, the key of the run.

    Returns:
        The prediction of the gradient, `[pairs]`, and the difference by each fitness, `[fitness,
        pairs]`; NaN if one of the two members has no finite fitness. Costs two forward passes a
        pair and fitness, and a draw a pair.
    """
    leaves, treedef = flatten(params)
    own = tuple(jnp.asarray(leaves[at]) for at in mutating)
    zeros = tuple(map(jnp.zeros_like, own))
    blocks = blocks_of(spec.noise, own, zeros)
    snapshot = Snapshot(blocks, tuple(leaves), treedef, mutating)
    population = population_around(
        blocks,
        mutating,
        noise=spec.noise,
        mirrors=True,
        sigma=jnp.asarray(spec.sigma, fitness_dtype()),
        read=None,
        key=generation_key(key_data, jnp.int32(0), jnp.int32(0)),
    )
    fitness = [
        fitness_of(fn, snapshot, kwargs=taken_by(fn, extra_args), execution=spec.execution)
        for fn in functions
    ]
    by_leaf = aligned(grads, params)
    slopes = [widen(by_leaf[at]) for at in mutating]
    center = population.parent().center
    counts = jnp.bool_(True)

    def pair(draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, whole = population.perturbation.draw_rows(draw), population.draw_whole(draw)
        other = population.mirrored_whole(whole, draw)
        ahead = population.leaves(Candidate(rows, whole, center), jnp.float32(1))
        behind = population.leaves(Candidate(rows, other, center), jnp.float32(-1))
        found = jnp.stack(
            [(fn(ahead, counts).value - fn(behind, counts).value) / 2 for fn in fitness]
        )
        halves = ((widen(ahead[at]) - widen(behind[at])) / 2 for at in range(len(slopes)))
        # The derivative along a complex number is the real part of its product with the gradient.
        terms = (jnp.sum(jnp.real(slope * by)) for slope, by in zip(slopes, halves, strict=True))
        return jnp.asarray(sum(terms), found.dtype), jnp.where(jnp.isfinite(found), found, jnp.nan)

    predicted, found = lax.map(pair, jnp.arange(spec.population_size // 2, dtype=jnp.int32))
    return predicted, found.T


def _correlation(left: jax.Array, right: jax.Array) -> jax.Array:
    """The correlation of two vectors around zero, over the entries that both have; else NaN."""
    both = jnp.isfinite(left) & jnp.isfinite(right)
    left, right = (jnp.where(both, vector, 0) for vector in (left, right))
    # Each by its own size first: the squares of small numbers would be zero.
    left, right = (vector / jnp.max(jnp.abs(vector)) for vector in (left, right))
    return jnp.sum(left * right) / jnp.sqrt(jnp.sum(left**2) * jnp.sum(right**2))
