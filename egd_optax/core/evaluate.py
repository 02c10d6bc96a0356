"""Evaluate: every candidate is drawn, scored and forgotten, and then the child of them all.

Candidates have numbers. 0 is the parent, then the members follow, and `n` is the child. `n + 1` is
the best member once more, formed, if members are evaluated without being formed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from egd_optax.backend import xla
from egd_optax.backend.devices import Devices, zeros_beside
from egd_optax.backend.memory import Memory
from egd_optax.backend.packing import Arrays
from egd_optax.core import auxiliary
from egd_optax.core.auxiliary import Evaluated, Seen
from egd_optax.core.fitness import fitness_dtype
from egd_optax.core.population import Candidate, Population
from egd_optax.core.select import Slots, empty_slots

# Makes the child when all members are scored, in the memory of a candidate, from the fitness of the
# members, `[n]`, their aux, and the pages; and the next state of the optimizer of the direction.
Land = Callable[
    [tuple[Candidate, optax.OptState], Population, jax.Array, Seen | None, Slots | None, Any],
    tuple[Candidate, optax.OptState],
]
# Maps a candidate of a population, its sign and whether it counts to its fitness.
Score = Callable[[Population, Candidate, jax.Array, jax.Array], Evaluated]


# Which members are kept, None if none are, and their pages.
Kept = tuple[Slots | None, Any]

NEVER = -jnp.inf  # in place of a fitness, which is finite or +inf


class Scored(NamedTuple):
    """The carry and the result of the evaluation of a generation.

    Attributes:
        held: the current candidate; in the end the child.
        fitness: of all candidates, `[n + 2]`; +inf before, and if one is not evaluated. The last
            entry is then `NEVER`, for its +inf means that the best member may not be taken.
        slots: which members are kept, None if none are.
        pages: their leaves that are kept.
        seen: the aux, None if there is none.
        es_state: the state of the optimizer of the direction.
    """

    held: Candidate
    fitness: jax.Array
    slots: Slots | None
    pages: Any
    seen: Seen | None
    es_state: optax.OptState


class Evaluation(NamedTuple):
    """How the candidates of a generation are evaluated.

    Attributes:
        population: draws them.
        size: the number of members, the parent included.
        score: evaluates one.
        score_many: the same for members in chunks, or None: one by one in the memory of one.
        land: makes the child.
        devices: share the members.
        memory: where members are kept.
        keeps: how many are kept, 0 if they are drawn again.
        batch_size: how many members are evaluated at a time.
        with_parent: whether the parent is evaluated.
        with_child: whether the child is evaluated.
        best_again: whether the best member is evaluated once more, formed.
    """

    population: Population
    size: int
    score: Score
    score_many: Score | None
    land: Land
    devices: Devices
    memory: Memory
    keeps: int
    batch_size: int
    with_parent: bool
    with_child: bool
    best_again: bool

    def run(self, es_state: optax.OptState, seen: Seen | None) -> Scored:
        """Scores all candidates, the child last.

        Returns:
            The child, the fitness of all, and what was kept. Costs `size + 1` forward passes, one
            more if the best is evaluated again, and a draw for each member or pair.
        """
        # Only the child is around other leaves than the parent's.
        held = self.population.parent(with_center=self.with_child)
        unknown = jnp.full([self.size + 2], jnp.inf, fitness_dtype())
        start = Scored(
            held=held,
            fitness=unknown.at[self.size + 1].set(NEVER),
            slots=empty_slots(self.keeps) if self.keeps else None,
            pages=self.memory.empty(held.whole, self.keeps) if self.keeps else None,
            seen=seen,
            es_state=es_state,
        )
        found = self._one_by_one(start) if self.score_many is None else self._in_chunks(start)
        if self.with_child:
            return found
        both = found.held, found.es_state
        # The parent is added up again: else it would be held since the noise was scaled.
        population, fitness = xla.no_hoist(self.population, found.fitness[: self.size])
        held, es_state = self.land(both, population, fitness, found.seen, found.slots, found.pages)
        return found._replace(held=held, es_state=es_state)

    # One by one.

    def _one_by_one(self, start: Scored) -> Scored:
        """Scores one candidate after another in the memory of one: one program for all."""

        def trip(number: jax.Array, now: Scored) -> Scored:
            member = (number > 0) & (number < self.size)
            now = now._replace(held=self.population.draw_into(now.held, number, member))
            if self.with_child:
                now = self._landed(number == self.size, now)
            return self._scored(number, self._sign(number), now)

        first, last = int(not self.with_parent), self.size + self.with_child
        return xla.loop(first, last, trip, start)

    def _sign(self, number: jax.Array) -> jax.Array:
        """The sign of a candidate: that of its noise, and zero for parent and child."""
        return jnp.where(number < self.size, self.population.sign_of(number), 0)

    def _scored(self, number: jax.Array, sign: jax.Array, now: Scored) -> Scored:
        """Evaluates the current candidate, the same one on all devices."""
        population, sign = xla.no_hoist(self.population, sign)
        evaluated = self.score(population, now.held, sign, self.devices.rank() == 0)
        evaluated = self.devices.pick(evaluated)
        now = now._replace(
            fitness=now.fitness.at[number].set(evaluated.value),
            seen=auxiliary.after_one(now.seen, evaluated, number, self.size),
        )
        value = jnp.where(number < self.size, evaluated.value, jnp.inf)
        slots, pages = self._kept((now.slots, now.pages), number, value, now.held.whole)
        return now._replace(slots=slots, pages=pages)

    def _kept(self, kept: Kept, member: jax.Array, fitness: jax.Array, whole: Arrays) -> Kept:
        """Keeps a member if it is among the best; of the parent no page."""
        slots, pages = kept
        if slots is None:
            return kept
        slots, taken = slots.insert(member, fitness)
        slot = jnp.where(member > 0, taken, self.keeps)
        pages = self.memory.put(pages, slot, whole)
        return slots, pages

    def _landed(self, pred: jax.Array, now: Scored) -> Scored:
        """Makes the child in the memory of the current candidate if `pred` holds."""
        # The population is handed in: XLA would compute the parent outside of the loop and hold it.
        known = self.population, now.fitness[: self.size], now.seen, now.slots, now.pages
        both = xla.run_if(pred, self.land, (now.held, now.es_state), *known)
        return now._replace(held=both[0], es_state=both[1])

    # In chunks, on each device.

    def _in_chunks(self, start: Scored) -> Scored:
        """Scores members in chunks, on each device its share; others on all devices alike."""
        alone = []  # by number
        if self.with_parent and self._first:
            alone.append(0)
        members_behind = len(alone)
        alone += [self.size + 1] * self.best_again + [self.size] * self.with_child
        if not alone:
            return self._members(start)

        def trip(index: jax.Array, now: Scored) -> Scored:
            number = jnp.asarray(alone, jnp.int32)[index]
            now = xla.run_if(index == members_behind, self._members, now)
            sign = jnp.zeros([], jnp.float32)
            if self.best_again:
                best = jnp.argmin(now.fitness[: self.size]).astype(jnp.int32)
                again = number == self.size + 1
                held = self.population.redraw_into(now.held, best, again & (best > 0))
                now = now._replace(held=held)
                sign = jnp.where(again, self.population.sign_of(best), sign)
            if self.with_child:
                now = self._landed(number == self.size, now)
            return self._scored(number, sign, now)

        result = xla.loop(0, len(alone), trip, start)
        return result if members_behind < len(alone) else self._members(result)

    @property
    def _first(self) -> int:
        """The first number in the chunks; the parent of pairs is evaluated alone."""
        return int(self.population.mirrors or self.best_again or not self.with_parent)

    def _members(self, now: Scored) -> Scored:
        """Scores all members but a parent that is evaluated alone."""
        pair = 1 + self.population.mirrors
        draws = (self.size - self._first) // pair
        share = self.devices.share(draws)
        size, chunks, rest = self._sizes(share, max(1, self.batch_size // pair))
        local = jnp.full([(chunks * size + rest) * pair], jnp.inf, fitness_dtype())
        seen = auxiliary.nothing_like(now.seen)

        def chunk(size: int, first: jax.Array, carry: Any) -> Any:
            local, seen, kept = carry
            of_share = first + jnp.arange(size)
            draw = self.devices.rank() * share + of_share
            counts = jnp.repeat((of_share < share) & (draw < draws), pair)
            firsts = self._first + pair * jnp.minimum(draw, draws - 1)
            numbers = (firsts[:, None] + jnp.arange(pair)).reshape(-1).astype(jnp.int32)
            many = self._drawn(now.held, numbers)
            evaluated = self._score_chunk(now.held, many, numbers, counts)
            local = lax.dynamic_update_slice(local, evaluated.value, (first * pair,))
            seen = auxiliary.after(seen, evaluated, numbers, counts, self.size)
            scores = jnp.where(counts, evaluated.value, jnp.inf)
            return local, seen, self._kept_of_chunk(kept, numbers, scores, many[1])

        start = *self.devices.varying((local, seen)), (now.slots, now.pages)
        whole = lambda index, carry: chunk(size, index * size, carry)  # noqa: E731
        carry = xla.loop(0, chunks, whole, start)
        local, seen, kept = chunk(rest, jnp.int32(chunks * size), carry) if rest else carry
        found = self.devices.gather(local)[:, : share * pair].reshape(-1)[: draws * pair]
        lanes = jax.tree.map(self.devices.gather, seen)
        return now._replace(
            fitness=now.fitness.at[self._first : self.size].set(found),
            seen=auxiliary.after_lanes(now.seen, lanes),
            slots=kept[0],
            pages=kept[1],
        )

    def _sizes(self, share: int, most: int) -> tuple[int, int, int]:
        """The size of a chunk, how many there are, and how many draws are left for a last one.

        A last chunk of another size is another program. If all devices must run the same trips, or
        members are not formed, equal chunks repeat a few members for nothing.
        """
        most = min(most, share)
        if self.devices.size == 1 and self.score_many is self.score:
            return most, share // most, share % most
        sizes = range(most // 2 + 1, most + 1)
        size = min(sizes, key=lambda size: (-(-share // size) * size, -size))
        return size, -(-share // size), 0

    def _drawn(self, held: Candidate, numbers: jax.Array) -> tuple[jax.Array, Any]:
        """Draws some members one after another, each pair from one draw: rows and whole leaves."""
        one = held.rows, held.whole
        many = jax.tree.map(lambda leaf: zeros_beside(leaf, numbers.size), one)

        def draw(index: jax.Array, carry: Any) -> Any:
            many, before = carry
            member = numbers[index]
            # As many trips on each device: nothing is spared for the one that has the parent.
            needed = (member > 0) | (self.devices.size > 1)
            drawn = self.population.draw_into(before, member, needed)
            pairs = zip(drawn.whole, held.whole, strict=True)
            own = drawn.rows, tuple(jnp.where(member > 0, leaf, parent) for leaf, parent in pairs)
            return jax.tree.map(lambda all_, leaf: all_.at[index].set(leaf), many, own), drawn

        start = self.devices.varying((many, held))
        drawn: tuple[jax.Array, Any] = xla.loop(0, numbers.size, draw, start)[0]
        return drawn

    def _score_chunk(
        self, held: Candidate, many: Any, numbers: jax.Array, counts: jax.Array
    ) -> Evaluated:
        """The fitness of some members, `[n]`."""
        assert self.score_many is not None  # narrows the type: members are in chunks
        score = self.score_many
        population, numbers = xla.no_hoist(self.population, numbers)

        def one(own: Any, number: jax.Array, counts: jax.Array) -> Evaluated:
            candidate = held._replace(rows=own[0], whole=own[1])
            return score(population, candidate, population.sign_of(number), counts)

        if self.batch_size > 1:
            found: Evaluated = jax.vmap(one)(many, numbers, counts)
            return found
        result: Evaluated = lax.map(lambda each: one(*each), (many, numbers, counts))
        return result

    def _kept_of_chunk(
        self, kept: Kept, numbers: jax.Array, fitness: jax.Array, whole: Arrays
    ) -> Kept:
        """Keeps those of a chunk that are among the best, one after another."""
        if kept[0] is None:
            return kept

        def keep(index: jax.Array, kept: Kept) -> Kept:
            own = tuple(leaf[index] for leaf in whole)
            return self._kept(kept, numbers[index], fitness[index], own)

        return xla.loop(0, numbers.size, keep, kept)
