"""Cycles of `evolve` around L-BFGS and around Adam."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.bbob.descent import Descent, adam_steps, arrive, lbfgs_step
from benchmarks.bbob.method import Run, Value, start
from benchmarks.bbob.seen import READ_AT, VALUE, VALUE_AND_GRADIENT, Seen, nothing_seen
from egd_optax import Execution, accept, evolve, noise, presets, recombine, sigma

# Larger than the steps of any run: a cycle that is never due.
NEVER = 2**30
# The last sigma of cycles around Adam, over the first one.
FLOOR = 1e-2


class Search(NamedTuple):
    """A run of `around_lbfgs`.

    Attributes:
        at: where its descent is.
        by_cycles: whether this descent began where a cycle ended, bool `[]`.
        spent: evaluations of descents from uniform points, and of cycles with the descents
            behind them, int32 `[2]`.
        starts: descents so far, int32 `[]`.
    """

    at: Descent
    by_cycles: jax.Array
    spent: jax.Array
    starts: jax.Array


def around_lbfgs(population: int, generations: int, random_ranks: bool = False) -> Run:
    """L-BFGS, with a cycle when it has converged, or a new start: each half of the budget.

    A cycle is a whole search: many generations from a wide sigma, which adapts by the length of
    the path. It starts where the descent ended, and the next descent where the cycle ends. The
    loop decides by `evolve_every`. So nothing is spent on cycles before the first minimum.

    Args:
        population: members of a generation.
        generations: of a cycle.
        random_ranks: whether members are ranked at random, for the control. The best of them is
            then not seen.

    Returns:
        The run. Its numbers are `sigma`, the standard deviation of the first generation, and the
        `tolerance` of `lbfgs`.
    """

    def run(
        value: Value, x: jax.Array, key: jax.Array, sigma: jax.Array, tolerance: jax.Array
    ) -> Seen:
        ranked = random_rank(key) if random_ranks else value
        cost = VALUE * population * generations

        def step(now: Search) -> Search:
            at = now.at
            left = at.seen.limits[-1] - at.seen.spent
            search = (now.spent[1] <= now.spent[0]) & (left > cost)
            leaves = at.converged()
            every = jnp.where(leaves & search, 1, NEVER)
            tx = cycles(population, generations, sigma, every, key)
            after = lbfgs_step(tx, ranked, at, tolerance, base_value_fn=value, evolve=None)
            ran = after.state.cycle > at.state.cycle
            best = jnp.inf if random_ranks else after.state.info.best_fitness
            seen = after.seen.after(
                jnp.where(ran, after.state.info.evaluations, 0), jnp.where(ran, best, jnp.inf)
            )
            elsewhere = start(jax.random.fold_in(key, now.starts), x.size)
            begins = jnp.where(search, after.x, elsewhere)
            fresh = tx.init(begins)._replace(cycle=after.state.cycle, count=after.state.count)
            after = lax.cond(
                leaves,
                lambda: arrive(value, begins, fresh, seen),
                lambda: after._replace(seen=seen),
            )
            by_cycles = jnp.where(leaves, search, now.by_cycles)
            spent = now.spent.at[by_cycles.astype(int)].add(after.seen.spent - at.seen.spent)
            return Search(after, by_cycles, spent, now.starts + leaves)

        state = cycles(population, generations, sigma, jnp.int32(NEVER), key).init(x)
        first = arrive(value, x, state, nothing_seen(x.size))
        begun = Search(first, jnp.bool_(False), jnp.zeros(2, jnp.int32), jnp.int32(1))
        return lax.while_loop(lambda now: now.at.seen.goes_on(), step, begun).at.seen

    return run


def cycles(
    population: int, generations: int, first_sigma: jax.Array, evolve_every: jax.Array, key: Any
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS with cycles that search from far to near."""
    return evolve(
        optax.lbfgs(),
        evolve_every=evolve_every,
        population_size=population,
        generations=generations,
        sigma=sigma.path_length(lambda cycle: first_sigma),
        noise=noise.gaussian(relative=False),
        recombine=recombine.member_weights(logarithmic),
        accept=accept.always(),
        execution=Execution(candidate_batch_size=population),
        key=key,
    )


def logarithmic(fitness: jax.Array) -> jax.Array:
    """The weights of CMA-ES: the better half, by the logarithm of the rank."""
    ranks = jnp.argsort(jnp.argsort(fitness))
    weights = jnp.maximum(jnp.log((fitness.size + 1) / 2) - jnp.log(ranks + 1), 0)
    return weights / jnp.sum(weights)


def random_rank(key: jax.Array) -> Value:
    """A function of random numbers: those of a point are drawn from its digits."""

    def value(x: jax.Array) -> jax.Array:
        digits = lax.bitcast_convert_type(x, jnp.uint32).ravel()
        mixed = jnp.sum(digits * jnp.arange(1, 2 * digits.size, 2, jnp.uint32), dtype=jnp.uint32)
        return jax.random.uniform(jax.random.fold_in(key, mixed), [], x.dtype)

    return value


def around_adam(share: float) -> Run:
    """`presets.global_search` around Adam for a share of the budget, then Adam alone.

    Its sigma decays along a schedule here.

    Args:
        share: of the budget, for the cycles.

    Returns:
        The run. Its numbers are `sigma` of the first cycle, and the `learning_rate` that Adam
        starts with behind the cycles.
    """

    def run(
        value: Value, x: jax.Array, key: jax.Array, sigma: jax.Array, learning_rate: jax.Array
    ) -> Seen:
        settings = presets.global_search(1.0, 1)
        price = settings["population_size"] * settings["generations"] * VALUE
        number = int(share * READ_AT[-1] * x.size / (price + VALUE_AND_GRADIENT))
        decay = optax.exponential_decay(1.0, number, FLOOR)
        settings |= {
            "window": (0, number),
            "sigma": lambda cycle: sigma * decay(cycle),
            "execution": Execution(candidate_batch_size=settings["population_size"]),
        }
        tx = evolve(optax.adam(1e-4), key=key, **settings)

        def step(_: jax.Array, carry: Any) -> Any:
            x, state, seen = carry
            found, gradient = jax.value_and_grad(value)(x)
            updates, state = tx.update(gradient, state, x, value_fn=value, evolve=True)
            seen = seen.after(VALUE_AND_GRADIENT, found)
            seen = seen.after(state.info.evaluations, state.info.best_fitness)
            return optax.apply_updates(x, updates), state, seen

        carry = x, tx.init(x), nothing_seen(x.size)
        x, _, seen = lax.fori_loop(0, number, step, carry)
        left = READ_AT[-1] * x.size - number * (price + VALUE_AND_GRADIENT)
        return adam_steps(value, x, left // VALUE_AND_GRADIENT, learning_rate, seen)

    return run
