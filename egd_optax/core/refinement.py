"""Refine: each member learns, by steps of a function, before it is scored."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax.backend import arithmetic, random
from egd_optax.backend.devices import cast_to_varying, divided_like, varying_axes
from egd_optax.backend.packing import Arrays
from egd_optax.base.arguments import taken_by
from egd_optax.core.fitness import Snapshot

# Purpose of its keys, behind those of `core/population.py`.
_OF_REFINEMENT = 2
# Maps the leaves of a member that mutate, each in a block `[1, ...]`, a key, uint32 `[2]`, and its
# number to its leaves after learning.
Refined = Callable[[Arrays, jax.Array, jax.Array], Arrays]


@dataclasses.dataclass(frozen=True)
class Refinement:
    """The argument `refine` of `evolve`, checked.

    Attributes:
        fn: maps parameters, a key and the number of a member to parameters like them.
        axis_names: the mapped axes over which results are averaged.
    """

    fn: Callable[..., optax.Params]
    axis_names: tuple[str, ...]

    def taken(self, extra_args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `update` that the function names."""
        return taken_by(self.fn, extra_args, behind=3)

    def around(self, snapshot: Snapshot, extra_args: Mapping[str, Any]) -> Refined:
        """The function on the leaves that mutate. It is jitted: all members share one trace.

        A member whose result is NaN or infinite anywhere stays as it was drawn.

        Args:
            snapshot: the parameters, for the leaves that do not mutate.
            extra_args: arguments of `update`.

        Raises:
            ValueError: the result is not like the parameters.
        """
        arguments = self.taken(extra_args)

        def refined(blocks: Arrays, key: jax.Array, member: jax.Array) -> Arrays:
            # Over an axis a gradient would else be the sum of those of all devices.
            axes = {*self.axis_names, *varying_axes(member)}
            params = jax.tree.map(
                lambda leaf: cast_to_varying(leaf, axes) if isinstance(leaf, jax.Array) else leaf,
                snapshot.tree({at: block[0] for at, block in enumerate(blocks)}),
            )
            key = jax.random.wrap_key_data(key, impl="threefry2x32")
            found = self.fn(params, key, member, **arguments)
            _check(self.fn, found, params)
            own = snapshot.leaves_of(found)
            if self.axis_names:
                own = lax.pmean(own, self.axis_names)
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in own]))
            pairs = zip(own, blocks, strict=True)
            return tuple(jnp.where(finite, divided_like(new[None], old), old) for new, old in pairs)

        jitted: Refined = jax.jit(refined)
        return jitted


def learn(whole: Arrays, population: Any, member: jax.Array) -> Arrays:
    """The leaves of a member of a `Population` after learning, as near as updates lead to them."""
    key = random.derive(population.key, _OF_REFINEMENT, member)

    def nearest(at: int, leaf: jax.Array) -> jax.Array:
        by = arithmetic.widen(leaf) - arithmetic.widen(population.parent_block(at))
        reached: jax.Array = population.reach(at, population.stepped(at, by))
        return reached

    return tuple(map(nearest, population.layout.whole, population.refined(whole, key, member)))


def _check(fn: Callable[..., Any], found: Any, params: optax.Params) -> None:
    got, like = (_described(tree) for tree in (found, params))
    if got != like:
        raise ValueError(
            f"`refine` must return parameters like those that it gets, got {got} for {like} from "
            f"{fn!r}: keep structure, shapes and dtypes, as `optax.apply_updates` does."
        )


def _described(tree: optax.Params) -> tuple[Any, list[str]]:
    leaves, treedef = jax.tree.flatten(tree)
    kinds = (
        f"{leaf.dtype} {list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for leaf in leaves
    )
    return treedef, list(kinds)
