"""How a cycle runs: where, how many members at a time, over which devices."""

import dataclasses
from typing import Any

import jax

from egd_optax._checks import check_choice, check_size
from egd_optax._written import settle
from egd_optax.backend.memory import Memory

MEMORY_MODES = ("host", "device", "replay")
EVALUATIONS = ("formed", "factored", "auto")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a cycle runs, never what it finds.

    Attributes:
        memory: where elites live during a cycle. "host": in pinned host memory. "device": on
            the device. "replay": nowhere, they are drawn again from their keys. All modes draw
            `noise.low_rank` again, and members under rules that weigh all members. The result is
            the same to the bit. On CPU "host" and "device" are the same. On an accelerator start
            with "host" from parameters and a state that are both committed to their devices (any
            sharding, or `jax.device_put((params, state), jax.devices()[0])`). JAX commits the
            results of a program with two memories, or with any committed argument. A jitted step
            that started from anything uncommitted would be compiled twice. Your own
            `egd_optax.backend.memory.Memory` keeps pages, the leaves of an elite, in another
            place or form; a subclass has three methods. It is not used with a `population_axis`,
            nor for members that are drawn again in all modes.
        evaluate: how members of `noise.low_rank` are evaluated. "formed": as parameters, like
            any others. "factored": as x W + (x A) B^T. Members then share the product with W, and
            W + A B^T is never added up. The fitness is the same within 1e-5 of it. In
            bfloat16 it is the same within the rounding that formed parameters would add. Parent,
            child and, with `accept.best()`, the best member are judged as the parameters that
            they would become. If an operation of `value_fn` has no factored form, it gets the
            formed leaf: see `egd_optax.factored.explain`. "auto": factored if that is faster.
        candidate_batch_size: members evaluated at a time, under `jax.vmap`. A batch gives more
            work to an accelerator that one small forward pass leaves idle. It takes memory for as
            many members and their activations. Members are the same to the bit, fitness within
            the rounding of a batched program. None: one, or as many as suit if they are factored.
            On CPU jaxlib 0.10.0 to 0.11.0 can deadlock if `value_fn` has several QRs, Cholesky
            decompositions, solves or inverses: docs/compatibility/known_issues.md.
        axis_name: mapped axes, of `jax.shard_map` or `jax.pmap`, to average fitness over. Pass a
            name, a tuple of names, or None. Inside of these None is an error if JAX does not
            notice that replicas drift apart, as with `check_vma=False`. Pass `()` there if each
            device has an independent model: no axis is then averaged over.
        population_axis: an axis to divide the members over, each device evaluating its share.
            In a plain `jax.jit` it is an axis of the mesh over which parameters are not sharded.
            Inside of `jax.shard_map` and `jax.pmap` it is the name of a mapped axis. Elites are
            drawn again from their keys, whatever `memory` is.
        mesh: the mesh of `population_axis`; None for that of `jax.set_mesh`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or has no effect with the others.

    Cost:
        "host" moves a member to the host each time that one enters the elite, and back once to
        recombine. "replay" draws k elites again. Device memory holds `candidate_batch_size`
        active members or one sum, whatever the population size.

    Example:
        >>> from egd_optax import Execution, egd
        >>> tx = egd(0.1, execution=Execution(memory="replay", candidate_batch_size=4))
    """

    memory: str | Memory = "host"
    evaluate: str = "formed"
    candidate_batch_size: int | None = None
    axis_name: str | tuple[str, ...] | None = None
    population_axis: str | None = None
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not isinstance(self.memory, Memory):
            check_choice("memory", self.memory, MEMORY_MODES)
        check_choice("evaluate", self.evaluate, EVALUATIONS)
        if self.candidate_batch_size is not None:
            size = check_size("candidate_batch_size", self.candidate_batch_size)
            settle(self, candidate_batch_size=size)
        _check_axis_names(self.axis_names)
        _check_population_axis(self.population_axis, self.axis_names, self.mesh)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes that fitness is averaged over."""
        if self.axis_name is None:
            return ()
        return self.axis_name if isinstance(self.axis_name, tuple) else (self.axis_name,)


def _check_axis_names(names: tuple[Any, ...]) -> None:
    """Names of axes."""
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            "`axis_name` must be the name of a mapped axis or a tuple of names, got "
            f"{names if len(names) != 1 else names[0]!r}."
        )


def _check_population_axis(population_axis: Any, axis_names: tuple[str, ...], mesh: Any) -> None:
    """None or a name that is not one of `axis_name`; a mesh is given only with a name."""
    if population_axis is not None and not isinstance(population_axis, str):
        raise TypeError(f"`population_axis` must be the name of one axis, got {population_axis!r}.")
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {mesh!r}.")
    if mesh is not None and population_axis is None:
        raise ValueError(
            f"`mesh` is that of `population_axis`, got {mesh!r} without one: name an axis of the "
            "mesh, or leave it out, which sharded parameters and batches do not need."
        )
    if population_axis in axis_names:
        raise ValueError(
            f"`population_axis` must not be one of `axis_name`, got {population_axis!r} for both: "
            "devices along an axis have either their own samples or their own members."
        )
