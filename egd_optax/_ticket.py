"""A ticket and a parent: all that a worker needs to make the candidates of a round."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax.backend.devices import placed_like
from egd_optax.backend.packing import Arrays
from egd_optax.base.leaves import flatten
from egd_optax.core.blocks import blocks_of
from egd_optax.core.bounds import OfLeaves
from egd_optax.core.fitness import Snapshot
from egd_optax.core.population import Population, generation_key, population_around
from egd_optax.core.refinement import Refinement
from egd_optax.core.spec import CycleSpec
from egd_optax.noise.interface import Noise
from egd_optax.sigma import Sigma

STATIC = {"static": True}
MEMBERS, CHILD, ACCEPT = "members", "child", "accept"
BEST = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """The numbers that a worker needs, with the parent, to make the candidates of a round.

    Pickled it takes about a kilobyte, and three bytes for each leaf that mutates. Tickets are equal
    if they ask for the same candidates of the same step. So a late result can be told from one that
    is awaited.

    Attributes:
        key: uint32 `[2]`, the key of the run.
        count: int32 `[]`, the step.
        cycle: int32 `[]`, the cycle.
        generation: int32 `[]`, the generation in the cycle.
        sigma: float `[]`, the sigma of the generation.
        best: int32 `[]`, the best member, once members have their fitness.
        kind: what is asked for. "members": the members. "child": the child. "accept": parent, best
            member and child, by the fitness that `accept` compares. The best is among them only if
            the rule may take it.
        numbers: of the candidates, in the order of their fitness in `tell`. 0 is the parent,
            `members` the child, and -1 is `best`.
        members: how many members the generation has, the parent included.
        mirrors: whether members come in mirrored pairs.
        noise: the distribution of the perturbations.
        mutating: positions of the leaves that mutate.
        settings: the settings of the optimizer, in words.
        refine: the function that members learn by; None if they do not.

    Example:
        >>> import pickle
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import ask_tell, evolve
        >>> tx, params = evolve(optax.sgd(0.1), population_size=6), jnp.ones(3)
        >>> asked, _ = ask_tell.ask(tx, params, tx.init(params), params)
        >>> asked.ticket.kind, asked.ticket.size
        ('members', 6)
        >>> pickle.loads(pickle.dumps(asked.ticket)) == asked.ticket
        True
    """

    key: jax.Array
    count: jax.Array
    cycle: jax.Array
    generation: jax.Array
    sigma: jax.Array
    best: jax.Array
    kind: str = dataclasses.field(metadata=STATIC)
    numbers: Sequence[int] = dataclasses.field(metadata=STATIC)
    members: int = dataclasses.field(metadata=STATIC)
    mirrors: bool = dataclasses.field(metadata=STATIC)
    noise: Noise = dataclasses.field(metadata=STATIC)
    mutating: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    settings: str = dataclasses.field(metadata=STATIC)
    refine: Refinement | None = dataclasses.field(default=None, metadata=STATIC)

    @property
    def size(self) -> int:
        """How many candidates are asked for."""
        return len(self.numbers)

    @property
    def time(self) -> tuple[int, ...]:
        """Its place in time, greater for the later one of two tickets of a run."""
        rank = (MEMBERS, CHILD, ACCEPT).index(self.kind)
        return int(self.count), int(self.cycle), int(self.generation), rank

    def __eq__(self, other: object) -> bool:
        """Whether both ask for the same candidates of the same step."""
        return isinstance(other, Ticket) and self._known() == other._known()

    def __hash__(self) -> int:
        """Equal for equal tickets."""
        return hash(self._known())

    def _known(self) -> tuple[Any, ...]:
        return self.settings, *map(int, self.key), *self.time


class Parent(NamedTuple):
    """The arrays that a worker holds during a round; a pytree.

    A candidate is `params + (updates + noise)`, rounded in this order, as a cycle within `jax.jit`
    rounds it. From the sum of both it could not be made to the bit.

    Attributes:
        params: pytree, the parameters. Leaves that mutate are those before the step of the base,
            all others those after it.
        updates: the updates of the leaves that mutate, one for each; they lead to the parent.
        time: int32 `[3]`, step, cycle and generation, as its tickets have them.
        reads: the arrays that the noise reads, like `updates`; None for nothing.
        child: the updates that lead to the child, like `updates`; None in the first round.
        bounds: of each leaf that mutates; None for a leaf without any.
        extra_args: the arguments of `refine`, by name; None for none.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import ask_tell, evolve
        >>> tx, params = evolve(optax.sgd(0.5)), {"w": jnp.ones(3)}
        >>> asked, _ = ask_tell.ask(tx, params, tx.init(params), params)
        >>> asked.parent.params["w"].tolist(), asked.parent.updates[0].tolist()
        ([1.0, 1.0, 1.0], [-0.5, -0.5, -0.5])
    """

    params: optax.Params
    updates: Arrays
    time: jax.Array
    reads: Arrays | None = None
    child: Arrays | None = None
    bounds: OfLeaves | None = None
    extra_args: dict[str, Any] | None = None


def settings_of(spec: CycleSpec) -> str:
    """The settings that a ticket is bound to, the same words in every process."""
    names: tuple[str, ...] = (
        "population_size",
        "generations",
        "noise",
        "antithetic",
        "recombine",
        "accept",
    )
    if isinstance(spec.sigma, Sigma):
        names = (*names, "sigma")
    if spec.bounds is not None:
        names = (*names, "bounds")
    if spec.refine is not None:
        names = (*names, "refine")
    text = ", ".join(f"{name}={getattr(spec, name)!r}" for name in names)
    return re.sub(r" at 0x[0-9a-fA-FX]+", "", text)


def snapshot_of(ticket: Ticket, parent: Parent) -> Snapshot:
    """The parameters after the step of the base."""
    leaves, treedef = flatten(parent.params)
    own = [leaves[at] for at in ticket.mutating]
    learning = ticket.refine is not None
    blocks = blocks_of(ticket.noise, own, parent.updates, parent.bounds, learning=learning)
    return Snapshot(blocks, tuple(leaves), treedef, ticket.mutating)


def population_of(ticket: Ticket, parent: Parent, snapshot: Snapshot) -> Population:
    """The members around the parent, none of them drawn yet."""
    refine, extra_args = ticket.refine, parent.extra_args or {}
    return population_around(
        snapshot.blocks,
        snapshot.positions,
        noise=ticket.noise,
        mirrors=ticket.mirrors,
        sigma=ticket.sigma,
        read=parent.reads,
        key=generation_key(ticket.key, ticket.cycle, ticket.generation),
        refined=None if refine is None else refine.around(snapshot, extra_args),
    )


def member(ticket: Ticket, parent: Parent, index: Any) -> optax.Params:
    """Makes a candidate that a ticket asks for, from the parent and a few numbers.

    It runs anywhere, in `jax.jit` too, on any device, in any order, as often as you like. It gives
    the bits of a cycle within `jax.jit`, and needs neither the optimizer nor its state.

    Args:
        ticket: of the round.
        parent: of the same round.
        index: the place of the candidate in the round, from 0 to `ticket.size - 1`. It is an int,
            or an int array `[]` or `[m]`, which may be traced.

    Returns:
        Its parameters, in the structure, dtypes and shardings of the parameters. For `[m]` indices
        those of all, with a leading axis `[m]`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an index is out of range, or the parent is that of another round.

    Cost:
        A draw, in the memory of the candidate; for `[m]` indices in the memory of all. The first
        call compiles.

    Example:
        The best three members of a generation as an ensemble:

        >>> import jax, jax.numpy as jnp, numpy as np, optax
        >>> from egd_optax import ask_tell, evolve
        >>> tx, params = evolve(optax.sgd(0.1), sigma=0.5), jnp.ones(3)
        >>> asked, _ = ask_tell.ask(tx, jnp.zeros(3), tx.init(params), params)
        >>> members = ask_tell.member(asked.ticket, asked.parent, np.arange(8))
        >>> best = jnp.argsort(jax.vmap(jnp.sum)(members))[:3]
        >>> ask_tell.member(asked.ticket, asked.parent, best).shape
        (3, 3)
    """
    for name, value, kind in (("ticket", ticket, Ticket), ("parent", parent, Parent)):
        if not isinstance(value, kind):
            raise TypeError(
                f"`{name}` must be that of a round, got {type(value).__name__}: pass "
                f"`asked.{name}`, from `ask` or `tell`."
            )
    _check_together(ticket, parent)
    index = index if isinstance(index, jax.Array) else np.asarray(index)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim > 1:
        raise TypeError(
            f"`index` must be an int or a vector of ints, got {index.dtype} {list(index.shape)}: "
            f"pass `np.arange({ticket.size})` for all candidates."
        )
    if not isinstance(index, jax.core.Tracer) and np.any((index < 0) | (index >= ticket.size)):
        raise ValueError(
            f"`index` must be from 0 to {ticket.size - 1}, got {index}: the ticket asks for "
            f"{ticket.size} candidates of the kind {ticket.kind!r}."
        )
    candidates = _members(ticket, parent, index.astype(np.int32))
    placed: optax.Params = jax.tree.map(placed_like, candidates, parent.params)
    return placed


def _check_together(ticket: Ticket, parent: Parent) -> None:
    """Refuses a parent that the ticket does not belong to, as far as their numbers are known."""
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((ticket, parent)))
    has_child = (parent.child is not None) == (ticket.kind != MEMBERS)
    if not has_child or (known and ticket.time[:3] != tuple(map(int, parent.time))):
        raise ValueError(
            f"`parent` must be that of the ticket, got another one for a ticket of the kind "
            f"{ticket.kind!r}: send workers `asked.parent` with each round."
        )


@jax.jit
def _members(ticket: Ticket, parent: Parent, index: jax.Array) -> optax.Params:
    with jax.numpy_rank_promotion("allow"):
        if index.ndim:
            # One after another: in a batch XLA would hold what each of them is made of.
            return lax.map(lambda one: _member(ticket, parent, one), index)
        return _member(ticket, parent, index)


def _member(ticket: Ticket, parent: Parent, index: jax.Array) -> optax.Params:
    number = jnp.asarray(ticket.numbers, jnp.int32).at[index].get()
    number = jnp.where(number == BEST, ticket.best, number)
    if parent.child is not None:
        is_child = number == ticket.members
        updates = optax.tree.where(is_child, parent.child, parent.updates)
        parent = parent._replace(updates=updates)
        number = jnp.where(is_child, 0, number)
    snapshot = snapshot_of(ticket, parent)
    population = population_of(ticket, parent, snapshot)
    held = population.redraw_into(population.parent(), number, number > 0)
    leaves = population.leaves(held, population.sign_of(number))
    return snapshot.tree(leaves)
