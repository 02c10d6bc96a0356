"""Leaves that the base optimizer never moves, whatever the gradients: a cycle leaves them alone."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from egd_optax.base.arguments import NUMBERS, arrays_of
from egd_optax.base.dependence import depends_on
from egd_optax.base.trees import aligned


class Frozen:
    """What one base optimizer freezes, found once for arguments of one kind.

    Attributes:
        known: the positions of the leaves that it moves, by the types of all arguments.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.known: dict[Any, frozenset[int]] = {}

    def moving(
        self,
        base: optax.GradientTransformationExtraArgs,
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        args: Mapping[str, Any],
    ) -> frozenset[int]:
        """Which leaves the base can move.

        Args:
            base: the base optimizer; traced, not run.
            grads: the gradients.
            state: of the base before the step.
            params: the parameters.
            args: the extra arguments of the base.

        Returns:
            The positions of the leaves whose update can depend on anything but the parameters. All
            positions where no update can: such a base freezes none of them, it leaves the
            parameters to the cycles.
        """
        own, with_own = arrays_of(params, NUMBERS)
        learned, with_learned = arrays_of((grads, state), NUMBERS)
        extra, with_extra = arrays_of(args)

        def updates_of(asked: list[list[Any]], own: list[Any]) -> optax.Updates:
            learned, extra = asked
            return base.update(*with_learned(learned), with_own(own), **with_extra(extra))[0]

        kind = (
            jax.tree.structure((grads, state, params, args)),
            tuple(map(jax.typeof, (*learned, *extra, *own))),
        )
        if kind not in self.known:
            moves = aligned(depends_on(updates_of, [learned, extra], own), params)
            moving = frozenset(at for at, one in enumerate(moves) if one)
            self.known[kind] = moving or frozenset(range(len(moves)))
        return self.known[kind]
