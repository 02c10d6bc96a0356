"""Operators that the library does not ship, written with its public protocol."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egd_optax.noise import Noise, Outcome
from egd_optax.noise.interface import Parts

# The logarithm of what sigma grows by after a success, and the share of successes that
# keeps it as it is.
GROWTH, TARGET = 0.2, 0.5


class ByMoments(Noise):
    """Noise of full rank that is larger where gradients were smaller.

    Its scale is the inverse fourth root of Adam's second moments.
    """

    def reads(self, base_state: optax.OptState, state: Any) -> optax.Params:
        """The second moments."""
        return optax.tree.get(base_state, "nu")

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        """That of the leaf, spread over its entries."""
        assert read is not None  # narrows the type
        # Where gradients were zero nothing is known: without a floor all noise were there.
        scale = (read + 1e-2 * jnp.mean(read) + 1e-30) ** -0.25
        return super().std(leaf, sigma, None) * scale / jnp.sqrt(jnp.mean(scale**2))


@dataclasses.dataclass(frozen=True)
class Around(Noise):
    """Another noise, made of `normals`; a subclass changes how far it reaches.

    Attributes:
        of: the other noise.
    """

    of: Noise

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        """That of the other noise."""
        return self.of.std(leaf, sigma, None)

    def normals(self, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], ...]:
        """Those of the other noise."""
        return self.of.normals(leaf)

    def form(self, parts: Parts, leaf: jax.Array) -> jax.Array:
        """As the other noise."""
        return self.of.form(parts, leaf)

    def form_sum(self, parts: Parts, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        """As the other noise."""
        return self.of.form_sum(parts, weights, leaf)


@dataclasses.dataclass(frozen=True)
class BySuccess(Around):
    """Sigma grows when the child is better than its parent, and shrinks when it is not.

    Attributes:
        accepted: whether better means that the child was taken; else its fitness decides.
    """

    accepted: bool = False

    def init(self, params: optax.Params) -> jax.Array:
        """What sigma is multiplied by."""
        return jnp.ones([])

    def sigma(self, sigma: jax.Array, state: jax.Array) -> jax.Array:
        """The sigma of a generation."""
        return sigma * state

    def adapt(self, state: jax.Array, outcome: Outcome) -> jax.Array:
        """Grows or shrinks."""
        better = outcome.child_fitness < outcome.fitness[0]
        success = outcome.accepted if self.accepted else better
        return state * jnp.exp(jnp.where(success, GROWTH, -GROWTH * TARGET / (1 - TARGET)))


@dataclasses.dataclass(frozen=True)
class InTurn(Around):
    """Each generation moves one layer, the next one the next; layers are what `params` holds."""

    def init(self, params: optax.Params) -> tuple[optax.Params, jax.Array]:
        """For each leaf how many generations there are until it moves, and how many layers."""
        layers, treedef = jax.tree.flatten(params, is_leaf=lambda node: node is not params)
        turns = (
            jax.tree.map(lambda _, at=at: jnp.int32(at), layer) for at, layer in enumerate(layers)
        )
        return treedef.unflatten(turns), jnp.int32(len(layers))

    def reads(self, base_state: optax.OptState, state: Any) -> optax.Params:
        """For each leaf whether it moves."""
        return jax.tree.map(lambda turn: turn == 0, state[0])

    def std(self, leaf: jax.Array, sigma: jax.Array, read: jax.Array | None) -> jax.Array:
        """That of the other noise, or zero."""
        return jnp.where(read, super().std(leaf, sigma, None), 0)

    def adapt(self, state: Any, outcome: Outcome) -> tuple[optax.Params, jax.Array]:
        """The next layer."""
        turns, count = state
        return jax.tree.map(lambda turn: (turn - 1) % count, turns), count
