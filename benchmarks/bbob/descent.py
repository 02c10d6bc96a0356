"""Gradients alone: Adam, L-BFGS, and L-BFGS that starts again."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.bbob.method import Value, start
from benchmarks.bbob.seen import READ_AT, VALUE_AND_GRADIENT, Seen, nothing_seen

# Steps in a row that change nothing, before a descent has converged.
PATIENCE = 3


class Descent(NamedTuple):
    """Where a descent is.

    Attributes:
        x: the point, with its `value` and `gradient`.
        state: of the optimizer.
        still: steps in a row that changed the value by less than the tolerance, int32 `[]`.
        seen: the ledger.
    """

    x: jax.Array
    value: jax.Array
    gradient: jax.Array
    state: Any
    still: jax.Array
    seen: Seen

    def converged(self) -> jax.Array:
        """Whether further steps would change nothing."""
        return self.still >= PATIENCE


def adam(value: Value, x: jax.Array, key: jax.Array, learning_rate: jax.Array) -> Seen:
    """Adam, whose learning rate decays along a cosine."""
    del key
    steps = READ_AT[-1] * x.size // VALUE_AND_GRADIENT
    return adam_steps(value, x, steps, learning_rate, nothing_seen(x.size))


def adam_steps(
    value: Value, x: jax.Array, steps: int, learning_rate: jax.Array, seen: Seen
) -> Seen:
    """The ledger after so many steps of Adam."""
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def step(_: jax.Array, carry: Any) -> Any:
        x, state, seen = carry
        found, gradient = jax.value_and_grad(value)(x)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(x, updates), state, seen.after(VALUE_AND_GRADIENT, found)

    after: Seen = lax.fori_loop(0, steps, step, (x, tx.init(x), seen))[2]
    return after


def lbfgs(value: Value, x: jax.Array, key: jax.Array, tolerance: jax.Array) -> Seen:
    """L-BFGS, from another uniform point whenever it has converged.

    Args:
        value: the function.
        x: where the first descent starts.
        key: of the other points.
        tolerance: a step that changes the value by less, relative where it is above 1, counts as
            still. With a negative one no descent converges.
    """
    tx = optax.lbfgs()

    def step(carry: tuple[Descent, jax.Array]) -> tuple[Descent, jax.Array]:
        at, starts = carry
        after = lbfgs_step(tx, value, at, tolerance)
        again = after.converged()
        elsewhere = start(jax.random.fold_in(key, starts), x.size)
        after = lax.cond(
            again,
            lambda: arrive(value, elsewhere, tx.init(x), after.seen),
            lambda: after,
        )
        return after, starts + again

    first = arrive(value, x, tx.init(x), nothing_seen(x.size))
    at, _ = lax.while_loop(lambda carry: carry[0].seen.goes_on(), step, (first, jnp.int32(1)))
    return at.seen


def arrive(value: Value, x: jax.Array, state: Any, seen: Seen) -> Descent:
    """A descent that begins at a point, with the value and gradient that its first step needs."""
    found, gradient = jax.value_and_grad(value)(x)
    return Descent(x, found, gradient, state, jnp.int32(0), seen.after(VALUE_AND_GRADIENT, found))


def lbfgs_step(
    tx: Any, value: Value, at: Descent, tolerance: jax.Array, **settings: Any
) -> Descent:
    """A step of L-BFGS, or of `evolve` around it.

    Each step of the line search takes a value and a gradient, and the last of them are those of
    the next step. Trial points that the line search leaves again are paid for and not seen.
    """
    updates, state = tx.update(
        at.gradient,
        at.state,
        at.x,
        value=at.value,
        grad=at.gradient,
        value_fn=value,
        **settings,
    )
    found, gradient = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
    seen = at.seen.after(VALUE_AND_GRADIENT * trials_of(state), found)
    moved = at.value - found > tolerance * jnp.maximum(1.0, jnp.abs(at.value))
    still = jnp.where(moved, 0, at.still + 1)
    return Descent(optax.apply_updates(at.x, updates), found, gradient, state, still, seen)


def trials_of(state: Any) -> jax.Array:
    """Steps of the latest line search, int32 `[]`."""
    return optax.tree.get(state, "num_linesearch_steps")
