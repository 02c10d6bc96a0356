"""Members that are evaluated without being formed: the parent's leaves, and factors beside them."""

import operator
from typing import NamedTuple

import jax

from egd_optax._cycle.auxiliary import Evaluated
from egd_optax._cycle.draws import Drawn
from egd_optax._cycle.fitness import OwnFitness
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Parent
from egd_optax._cycle.spec import Leaves
from egd_optax.factored.interpret import evaluate
from egd_optax.factored.leaf import Factored


class Unformed(NamedTuple):
    """How members are evaluated that are not formed.

    Attributes:
        members: the members.
        parent: what they are around.
        bases: the mutating leaves of the parent, one by one: made once for all members.
        fitness: of the mutating leaves of a member.
    """

    members: Members
    parent: Parent
    bases: Leaves
    fitness: OwnFitness

    def evaluate(self, drawn: Drawn, counts: jax.Array) -> Evaluated:
        """The fitness of a member, `[]`, from what its noise is made of."""
        found: Evaluated = evaluate(self.fitness, self.leaves(drawn), counts)
        return found

    def leaves(self, drawn: Drawn) -> tuple[jax.Array | Factored, ...]:
        """The mutating leaves of a member one by one; those with factors are not formed."""
        members = self.members
        own: dict[int, jax.Array | Factored] = {}
        own.update(self.parent.leaves_of(members.formed_beside_factors(drawn)))
        groups = zip(members.stacks.groups, drawn, members.with_factors, strict=True)
        for group, made_of, has_factors in groups:
            for place, leaf in enumerate(group if has_factors else ()):
                parts = jax.tree.map(operator.itemgetter(place), made_of)
                parts = parts if len(group) > 1 else made_of
                base = self.bases[leaf]
                left, right = members.noise._factors(parts, base)
                left, right = left.astype(base.dtype), right.astype(base.dtype)
                own[leaf] = Factored(base, left, right, (leaf,))
        return tuple(own[at] for at in range(len(own)))


def unformed_of(members: Members, parent: Parent, fitness: OwnFitness) -> Unformed:
    """The same members, evaluated as their factors.

    Args:
        members: the members.
        parent: what they are around.
        fitness: of the mutating leaves of a member.
    """
    leaves = members.genome.leaves()
    held = members.around(members.genome.of(leaves))
    return Unformed(held, parent, parent.own_leaves(leaves), fitness)
