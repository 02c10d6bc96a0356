"""What a cycle does, and what it selects on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from egd_optax._cycle.population import AnyMesh
from egd_optax._cycle.recombine import RANKED, Rule


class CycleSpec(NamedTuple):
    """What a cycle does; see the arguments of `egd_optax.evolve`."""

    population_size: int
    elite_count: int
    antithetic: bool
    generations: int
    candidate_batch_size: int
    sigma: jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]
    relative_sigma: bool
    min_scale: jax.typing.ArrayLike
    rank: int | None
    recombine: Rule
    recombine_step: jax.typing.ArrayLike
    temperature: jax.typing.ArrayLike
    accept: str
    reset_base: bool
    mutable: object
    memory: str
    axis_names: tuple[str, ...]
    population_axis: str | None
    mesh: AnyMesh | None

    @property
    def member_count(self) -> int:
        """The members of a generation, the parent included: antithetic pairs stand beside it."""
        return self.population_size + self.antithetic

    @property
    def keeps_elites(self) -> bool:
        """Whether elites are kept as they are found, in the way of `memory`; see `weigh`."""
        return self.recombine != RANKED and self.rank is None


class Objectives(NamedTuple):
    """What a cycle selects on.

    Attributes:
        value_fn: the fitness of parameters.
        accept_value_fn: the fitness that the outcome is judged by, or None for `value_fn`.
        extra_args: extra arguments of `update`, for those of their names that they take.
    """

    value_fn: Callable[..., Any]
    accept_value_fn: Callable[..., Any] | None
    extra_args: Mapping[str, Any]
