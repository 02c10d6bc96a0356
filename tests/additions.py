"""What a user adds to the library from outside: each is one class of at most 40 code lines."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from egd_optax import accept, noise
from egd_optax.backend.memory import Memory


@dataclasses.dataclass(frozen=True)
class AdamScaled(noise.Noise):
    """Noise in units of Adam's steps: small where the gradients were large."""

    floor: float = 0.125

    def reads(self, base_state, state):
        return optax.tree.get(base_state, "nu")

    def std(self, leaf, sigma, read):
        return sigma / (jnp.sqrt(read) + self.floor)


@dataclasses.dataclass(frozen=True)
class OneFifth(noise.Noise):
    """Rechenberg's rule: sigma grows after a success, and shrinks by a fourth of that after none.

    With one success in five generations it stays as it is.
    """

    growth: float = 1.5

    def init(self, params):
        return jnp.float32(1.0)

    def sigma(self, sigma, state):
        return sigma * state

    def adapt(self, state, outcome):
        success = outcome.child_fitness < outcome.fitness[0]
        return state * jnp.where(success, self.growth, self.growth**-0.25)


@dataclasses.dataclass(frozen=True)
class Separable(noise.Noise):
    """A standard deviation for every parameter, adapted as in SNES.

    Schaul, Glasmachers and Schmidhuber, `High Dimensions and Heavy Tails for Natural Evolution
    Strategies`, 2011. Its state is the logarithms.
    """

    first: float = 0.1
    rate: float = 0.2
    statistic = staticmethod(lambda unit: unit**2 - 1)

    def init(self, params):
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.log(self.first)), params)

    def reads(self, base_state, state):
        return jax.tree.map(jnp.exp, state)

    def std(self, leaf, sigma, read):
        return read

    def adapt(self, state, outcome):
        return jax.tree.map(lambda log, s: log + self.rate / 2 * s, state, outcome.statistic)


@dataclasses.dataclass(frozen=True)
class Annealed(accept.Accept):
    """Simulated annealing: takes a child that is worse with the chance exp(-loss / temperature)."""

    temperature: float = 1.0
    cooling: float = 0.75
    takes_best = False

    def init(self, params):
        return jnp.float32(self.temperature)

    def choose(self, key, parent, best, child, state):
        taken = jax.random.uniform(key) < jnp.exp((parent - child) / state)
        return jnp.where(taken, accept.CHILD, accept.PARENT), state * self.cooling


class FlatPages(Memory):
    """Keeps each page as one float32 vector, and empty arrays that tell shapes and dtypes."""

    def empty(self, like, count):
        shapes = tuple(jnp.zeros((0, *leaf.shape), leaf.dtype) for leaf in like)
        return {"numbers": jnp.zeros((count, sum(leaf.size for leaf in like))), "shapes": shapes}

    def put(self, pages, slot, leaves):
        page = jnp.concatenate([leaf.reshape(-1).astype(jnp.float32) for leaf in leaves])
        return pages | {"numbers": pages["numbers"].at[slot].set(page, mode="drop")}

    def get(self, pages, slot):
        page, leaves = pages["numbers"][slot], []
        for like in pages["shapes"]:
            size = math.prod(like.shape[1:])
            numbers, page = page[:size], page[size:]
            leaves.append(numbers.reshape(like.shape[1:]).astype(like.dtype))
        return tuple(leaves)
