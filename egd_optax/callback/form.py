"""The arguments of a call, without their arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Form:
    """What the arguments of a call are but for their arrays.

    Attributes:
        structure: of all arguments.
        others: what is no array, by position.
        own: positions of the arrays of which each evaluation has its own.
    """

    structure: Any
    others: tuple[tuple[int, Any], ...]
    own: frozenset[int] = frozenset()

    def filled(self, arrays: dict[int, Any]) -> Any:
        """The arguments with these arrays."""
        leaves = arrays | dict(self.others)
        return jax.tree.unflatten(self.structure, [leaves[at] for at in range(len(leaves))])

    def _known(self) -> tuple[Any, ...]:
        """Equal of forms that are the same; numbers and strings by value, else the objects."""
        others = tuple(
            (at, type(leaf), leaf if isinstance(leaf, bool | int | float | str) else id(leaf))
            for at, leaf in self.others
        )
        return self.structure, others, self.own

    def __eq__(self, other: object) -> bool:
        """Whether both forms hold the same."""
        return isinstance(other, Form) and self._known() == other._known()

    def __hash__(self) -> int:
        """Equal for equal forms."""
        return hash(self._known())

    def __repr__(self) -> str:
        """All that the form holds: programs outside of jit are known by it."""
        return f"Form{self._known()}"


jax.tree_util.register_static(Form)


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is passed to Python as an array."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def plain(leaf: Any) -> jax.Array:
    """An array that NumPy has too: of a typed key its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf)
