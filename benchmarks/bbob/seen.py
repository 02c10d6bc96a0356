"""What a run has spent, and the best value that it has seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Where the best value is read, in evaluations over the dimension; the last one is the budget.
READ_AT = (10, 30, 100, 300, 1000)
# Prices: one value is 1 evaluation.
VALUE, VALUE_AND_GRADIENT = 1, 3
# Five targets in each decade, from a hundred to 1e-8.
TARGETS = 10.0 ** np.linspace(2, -8, 51)


class Seen(NamedTuple):
    """The ledger of a run.

    Attributes:
        spent: evaluations so far, int32 `[]`.
        best: the best value seen within each number of evaluations, `[len(READ_AT)]`.
        limits: these numbers, int32 `[len(READ_AT)]`.
    """

    spent: jax.Array
    best: jax.Array
    limits: jax.Array

    def after(self, cost: jax.typing.ArrayLike, value: jax.Array) -> "Seen":
        """The ledger after evaluations that cost so much, of which the best value is given.

        What goes beyond a limit is not seen within it.
        """
        spent = self.spent + jnp.int32(cost)
        better = jnp.fmin(self.best, value)
        return self._replace(spent=spent, best=jnp.where(spent <= self.limits, better, self.best))

    def goes_on(self) -> jax.Array:
        """Whether some of the budget is left."""
        return self.spent < self.limits[-1]


def nothing_seen(dimension: int) -> Seen:
    """The ledger of a run that has not begun."""
    limits = jnp.asarray(READ_AT, jnp.int32) * dimension
    return Seen(jnp.int32(0), jnp.full(len(READ_AT), jnp.inf), limits)


def hit(best: np.ndarray) -> np.ndarray:
    """How many of the targets each value hits, of the shape of `best`."""
    return np.sum(np.asarray(best)[..., None] <= TARGETS, axis=-1)
