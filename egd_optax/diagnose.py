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
from egd_optax.backend.arithmetic import cast, widen
from egd_optax.base.arguments import taken_by
from egd_optax.base.leaves import aligned, flatten, mutating_leaves
from egd_optax.core.blocks import blocks_of
from egd_optax.core.fitness import Fitness, Snapshot, fitness_dtype, fitness_of
from egd_optax.core.population import (
    Candidate,
    Population,
    generation_key,
    population_around,
)
from egd_optax.core.select import member_weights
from egd_optax.core.spec import STRAIGHT, CycleSpec
from egd_optax.execution import Execution
from egd_optax.noise.interface import Noise

# Those that mutate, by their positions among these.
Leaves = dict[int, jax.Array]


class Diagnosis(NamedTuple):
    """Two correlations over mirrored pairs around some parameters, and what two jumps gain.

    Attributes:
        gradient_correlation: float `[]`, from -1 to 1, of the fitness differences of pairs with the
            prediction of the gradient. Near 1 the gradient predicts the fitness.
        reliability: float `[]`, from -1 to 1, of the fitness differences of pairs with those on
            other samples. Near 0 they are luck. NaN without `other_value_fn`.
        gain: float `[]`, by how much the child of these members is lower than the parent, on the
            other samples, in units of the fitness. NaN without `other_value_fn`.
        gain_of_random_ranks: float `[]`, the same of a child whose members have random ranks: the
            same weights, handed out by chance. If `gain` is not above it, selection adds nothing.

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
    gain: jax.Array
    gain_of_random_ranks: jax.Array


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

    The other samples also judge two children of these members: one by centered ranks, and one by
    random ranks. Both jump by one draw, so average over a few batches and keys.

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
        The two correlations, around zero; NaN if no pair differs. And the two gains. Costs
        `2 * pairs` forward passes for `value_fn`, three more for `other_value_fn`, two draws a pair
        and the memory of four members.

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
    around = _around(spec, params, mutating, functions, extra_args, make_key_data(key))
    predicted, values = _scored(spec, around, aligned(grads, params))
    found = (values[..., 0] - values[..., 1]) / 2
    found = jnp.where(jnp.isfinite(found), found, jnp.nan)
    gradient_correlation = _correlation(predicted, found[0])
    if other_value_fn is None:
        unknown = jnp.full([], jnp.nan, found.dtype)
        return Diagnosis(gradient_correlation, unknown, unknown, unknown)
    rules = spec.recombine, recombine.shuffled(spec.recombine)
    gains = [_gain(spec, around, rule, values[0]) for rule in rules]
    return Diagnosis(gradient_correlation, _correlation(*found), *gains)


class _Around(NamedTuple):
    """Members that are not drawn yet.

    Attributes:
        population: of the parameters around which they are drawn.
        positions: of the leaves that mutate, among all.
        fitness: what they are scored by, on some samples and perhaps on others.
    """

    population: Population
    positions: tuple[int, ...]
    fitness: tuple[Fitness, ...]

    def pair(self, draw: jax.Array) -> tuple[Leaves, Leaves]:
        """The leaves of the two members of a pair."""
        population = self.population
        rows, whole = population.perturbation.draw_rows(draw), population.draw_whole(draw)
        other = population.mirrored_whole(whole, draw)
        center = population.parent().center
        return (
            population.leaves(Candidate(rows, whole, center), jnp.float32(1)),
            population.leaves(Candidate(rows, other, center), jnp.float32(-1)),
        )


def _around(
    spec: CycleSpec,
    params: optax.Params,
    mutating: tuple[int, ...],
    functions: Sequence[Callable[..., Any]],
    extra_args: Mapping[str, Any],
    key_data: jax.Array,
) -> _Around:
    """Members in mirrored pairs, as the first cycle of a run with this key draws them."""
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
    fitness = tuple(
        fitness_of(fn, snapshot, kwargs=taken_by(fn, extra_args), execution=spec.execution)
        for fn in functions
    )
    return _Around(population, mutating, fitness)


def _scored(spec: CycleSpec, around: _Around, grads: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """The prediction of the gradient for each pair, and the fitness of its members.

    Args:
        spec: says how many members there are.
        around: the members.
        grads: the gradient of each leaf.

    Returns:
        Half the predicted differences, `[pairs]`, and fitness `[fitness, pairs, 2]`. Costs two
        forward passes a pair and fitness, and a draw a pair.
    """
    slopes = [widen(grads[at]) for at in around.positions]
    counts = jnp.bool_(True)

    def pair(draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        ahead, behind = around.pair(draw)
        values = jnp.stack(
            [
                jnp.stack([fn(side, counts).value for side in (ahead, behind)])
                for fn in around.fitness
            ]
        )
        halves = ((widen(ahead[at]) - widen(behind[at])) / 2 for at in range(len(slopes)))
        # The derivative along a complex number is the real part of its product with the gradient.
        terms = (jnp.sum(jnp.real(slope * by)) for slope, by in zip(slopes, halves, strict=True))
        return jnp.asarray(sum(terms), values.dtype), values

    predicted, values = lax.map(pair, jnp.arange(spec.population_size // 2, dtype=jnp.int32))
    return predicted, jnp.moveaxis(values, 1, 0)


def _gain(
    spec: CycleSpec, around: _Around, rule: recombine.Recombine, values: jax.Array
) -> jax.Array:
    """By how much the child of a rule is lower than the parent, by the last fitness.

    Args:
        spec: of the cycle.
        around: the members.
        rule: weighs them.
        values: the fitness that it weighs them by, `[pairs, 2]`.

    Returns:
        `[]`. Costs a draw a pair and two forward passes.
    """
    weights = member_weights(rule, values.ravel(), None, None).reshape(values.shape)
    # The two of a pair share a draw.
    by_draw = (weights[:, 0] - weights[:, 1]) / 2
    parent = around.population.leaves(around.population.parent(), jnp.float32(0))

    def add(draw: jax.Array, total: Leaves) -> Leaves:
        ahead, behind = around.pair(draw)
        return {
            at: by + (by_draw[draw] * (widen(ahead[at]) - widen(behind[at]))).astype(by.dtype)
            for at, by in total.items()
        }

    zeros = {at: jnp.zeros_like(widen(leaf)) for at, leaf in parent.items()}
    step = lax.fori_loop(0, spec.population_size // 2, add, zeros)
    child = {at: cast(widen(leaf) + step[at], leaf.dtype) for at, leaf in parent.items()}
    score, counts = around.fitness[-1], jnp.bool_(True)
    gain: jax.Array = score(parent, counts).value - score(child, counts).value
    return gain


def _correlation(left: jax.Array, right: jax.Array) -> jax.Array:
    """The correlation of two vectors around zero, over the entries that both have; else NaN."""
    both = jnp.isfinite(left) & jnp.isfinite(right)
    left, right = (jnp.where(both, vector, 0) for vector in (left, right))
    # Each by its own size first: the squares of small numbers would be zero.
    left, right = (vector / jnp.max(jnp.abs(vector)) for vector in (left, right))
    return jnp.sum(left * right) / jnp.sqrt(jnp.sum(left**2) * jnp.sum(right**2))
