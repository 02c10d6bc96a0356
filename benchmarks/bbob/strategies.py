"""Evolution strategies of evosax, without gradients."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from benchmarks.bbob.method import DIMENSION, Run, Value
from benchmarks.bbob.seen import READ_AT, VALUE, Seen, nothing_seen

SMALL = 4 + int(3 * np.log(DIMENSION))
LARGE = 100


def strategy(name: str, population: int) -> Run:
    """A strategy from a point, to the end of the budget.

    Args:
        name: of a class of `evosax.algorithms`; its settings are the defaults of evosax.
        population: members of a generation.

    Returns:
        The run. Its number `sigma` is the standard deviation of the first generation.
    """

    def run(value: Value, x: jax.Array, key: jax.Array, sigma: jax.Array) -> Seen:
        from evosax import algorithms  # only where it runs: the tests do without

        search = getattr(algorithms, name)(population, x)
        params = search.default_params.replace(std_init=sigma)

        def generation(at: jax.Array, carry: tuple[Any, Seen]) -> tuple[Any, Seen]:
            state, seen = carry
            ask_key, tell_key = jax.random.split(jax.random.fold_in(key, at))
            members, state = search.ask(ask_key, state, params)
            values = jax.vmap(value)(members)
            state, _ = search.tell(tell_key, members, values, state, params)
            return state, seen.after(VALUE * population, jnp.nanmin(values))

        first = jax.tree.map(jnp.asarray, search.init(key, x, params))
        generations = READ_AT[-1] * x.size // population
        carry = first, nothing_seen(x.size)
        after: Seen = lax.fori_loop(0, generations, generation, carry)[1]
        return after

    return run
