"""A step: the base optimizer, and a cycle when one is due."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._advice import advice_on_state, warn_inside_multi_steps
from egd_optax._axes import check_axes, check_population_axis
from egd_optax._due import is_due
from egd_optax._gradients import gradients
from egd_optax._key import make_key_data
from egd_optax._programs import Programs
from egd_optax._settings import check_update
from egd_optax._state import EvolveState, check_state, holds_evolve
from egd_optax.backend import xla
from egd_optax.backend.placement import replicate_uncommitted
from egd_optax.base import accumulation, arguments
from egd_optax.base.dependence import BlackBox, Traits
from egd_optax.base.leaves import aligned
from egd_optax.base.reset import Reset, forget_the_point, move_anchors, reset_after_jump
from egd_optax.core import info, strategy
from egd_optax.core.spec import CycleSpec, Mutating, Objectives


class Step(NamedTuple):
    """The two functions of an `evolve`, `init` and `update`, with its settings.

    Attributes:
        base: the optimizer that steps.
        spec: the settings of a cycle.
        evolve_every: steps between cycles.
        window: see the argument of `evolve`.
        reset_base: see the argument of `evolve`.
        key: an int seed or a threefry key.
        programs: the cycles that were compiled outside of `jax.jit`.
        black_box: finds what the base does.
    """

    base: optax.GradientTransformationExtraArgs
    spec: CycleSpec
    evolve_every: Any
    window: tuple[int, int | None] | None
    reset_base: bool | Reset
    key: Any
    programs: Programs
    black_box: BlackBox

    def init(self, params: optax.Params) -> EvolveState:
        """The state before the first step."""
        strategy.known_leaves(self.spec, params)
        state = EvolveState(
            count=jnp.zeros([], jnp.int32),
            cycle=jnp.zeros([], jnp.int32),
            key_data=make_key_data(self.key),
            base_state=self.base.init(params),
            info=info.no_cycle_yet(self.spec.aux),
            strategy_state=strategy.strategy_state_of(self.spec, params),
        )
        placed: EvolveState = replicate_uncommitted(state, params)
        return placed

    def update(
        self,
        updates: optax.Updates | None,
        state: EvolveState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        accept_value_fn: Callable[..., Any] | None = None,
        base_value_fn: Callable[..., Any] | None = None,
        evolve: bool | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EvolveState]:
        """The updates of a step and the state after it; see `egd_optax.evolve`."""
        check_state(state, self.spec)
        state = state._replace(  # a checkpoint can give back Python numbers
            count=jnp.asarray(state.count),
            cycle=jnp.asarray(state.cycle),
            key_data=jnp.asarray(state.key_data),
        )
        functions = {
            "value_fn": value_fn,
            "accept_value_fn": accept_value_fn,
            "base_value_fn": base_value_fn,
        }
        evolve = check_update(params, functions, evolve, accept=self.spec.accept)
        if evolve is None:
            warn_inside_multi_steps()
        given = [fn for fn in functions.values() if fn is not None]
        learning = [] if self.spec.refine is None else [self.spec.refine.fn]
        arguments.check_spelling(extra_args, given + learning)
        arguments.check_reserved(extra_args, given)
        base_args = self.base_args(state.base_state, functions, evolve, extra_args)
        updates = gradients(self, updates, state.base_state, params, base_args)
        with advice_on_state(self.base, state.base_state, params):
            base_updates, base_state = self.base.update(
                updates, state.base_state, params, **base_args
            )
        count = optax.safe_increment(state.count)
        skipped = accumulation.skipped(state.base_state, base_state)
        if skipped is not None:
            count = jnp.where(skipped, state.count, count)
        after = state._replace(count=count, base_state=base_state)
        if evolve is False:
            return base_updates, after
        traits = self.black_box.traits(updates, state.base_state, params, base_args)
        mutating = Mutating(self.mutating(traits, params, base_updates), traits.still)
        assert value_fn is not None  # narrows the type: checked above
        own = _with_own_promotion
        guard = None if accept_value_fn is None else own(accept_value_fn)
        objectives = Objectives(own(value_fn), guard, extra_args, base_state)
        with jax.numpy_rank_promotion("allow"):
            return self._with_cycle(
                self._due(evolve, count, skipped),
                mutating,
                traits.anchors,
                objectives,
                params,
                base_updates,
                after,
            )

    def mutating(
        self, traits: Traits, params: optax.Params, base_updates: optax.Updates
    ) -> tuple[int, ...]:
        """The positions of the leaves that mutate."""
        mutating = strategy.known_leaves(self.spec, params, base_updates)
        if self.spec.mutable is None:
            mutating = tuple(at for at in mutating if at in traits.moving)
        return mutating

    def _due(self, evolve: bool | None, count: jax.Array, skipped: jax.Array | None) -> jax.Array:
        """Whether a cycle runs, bool `[]`; never on a step that the base skipped."""
        # If a cycle is certain, this is always true, and XLA cannot know. Every cycle is then
        # a separate program behind the same boundary, and rounds in the same way.
        certain = evolve or (
            not isinstance(self.evolve_every, jax.Array)
            and self.evolve_every == 1
            and self.window is None
        )
        due = ~xla.opaque_false(count) if certain else is_due(count, self.evolve_every, self.window)
        return due if skipped is None else due & ~skipped

    def _with_cycle(
        self,
        due: jax.Array,
        mutating: Mutating,
        anchors: tuple[int | None, ...],
        objectives: Objectives,
        params: optax.Params,
        base_updates: optax.Updates,
        state: EvolveState,
    ) -> tuple[optax.Updates, EvolveState]:
        """Runs a cycle behind the base step, if one is due."""
        start = self.start(params, base_updates, state)
        check_axes(self.spec.execution)
        check_population_axis(self.spec, params, objectives.extra_args)
        spec, arrays, with_functions = strategy.on_arrays(self.spec, start.strategy_state)
        start = start._replace(strategy_state=arrays)
        ran = self.programs.run_cycle(due, spec, mutating, objectives, start)
        ran = ran._replace(strategy_state=with_functions(ran.strategy_state))
        return self.after_cycle(ran, due, params, base_updates, anchors, state)

    def start(
        self, params: optax.Params, base_updates: optax.Updates, state: EvolveState
    ) -> info.Start:
        """The step before its cycle; the state of its strategy is checked."""
        strategy.check_strategy_state(self.spec, state.strategy_state, params)
        return info.Start(
            params=params,
            base_updates=base_updates,
            # In the dtypes of a cycle, for a state that was cast or made under another x64.
            info=info.in_dtypes(state.info, info.info_like(self.spec.aux)),
            key_data=state.key_data.astype(jnp.uint32),
            cycle=state.cycle.astype(jnp.int32),
            strategy_state=state.strategy_state,
        )

    def after_cycle(
        self,
        ran: info.Ran,
        due: jax.Array,
        params: optax.Params,
        base_updates: optax.Updates,
        anchors: tuple[int | None, ...],
        state: EvolveState,
    ) -> tuple[optax.Updates, EvolveState]:
        """The updates that a cycle found, and the state behind it."""
        base_state = forget_the_point(state.base_state, ran.jumped)
        if self.reset_base is not True:
            both = aligned(ran.updates, params), aligned(base_updates, params)
            base_state = move_anchors(anchors, base_state, *both, ran.jumped)
        if self.reset_base:
            base_state = reset_after_jump(
                self.reset_base, self.base, base_state, params, ran.updates, ran.jumped, anchors
            )
        return ran.updates, state._replace(
            cycle=jnp.where(due, optax.safe_increment(state.cycle), state.cycle),
            base_state=base_state,
            info=info.in_dtypes(ran.info, state.info),
            strategy_state=ran.strategy_state,
        )

    def base_args(
        self,
        base_state: optax.OptState,
        functions: dict[str, Callable[..., Any] | None],
        evolve: bool | None,
        extra_args: dict[str, Any],
    ) -> dict[str, Any]:
        """The arguments of `update` that the base gets.

        It gets those of an `evolve` only if it holds one: line searches refuse them.
        """
        args: dict[str, Any] = {}
        objective = functions["base_value_fn"] or functions["value_fn"]
        if holds_evolve(base_state):
            args = {name: fn for name, fn in functions.items() if fn is not None}
            args["evolve"] = evolve
        elif objective is not None:
            added = {"generation": jnp.int32(0), "base_state": base_state}
            has_aux = self.spec.aux is not None and functions["base_value_fn"] is None
            args["value_fn"] = arguments.for_line_search(
                objective, extra_args, added, has_aux=has_aux
            )
        return arguments.taken_by(self.base.update, extra_args | args, behind=3)


def _with_own_promotion(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function with the promotion of ranks that the user allows; a cycle needs it."""
    allowed = jax.numpy_rank_promotion.value

    @functools.wraps(fn)
    def value_fn(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion(allowed):
            return fn(*args, **kwargs)

    return value_fn
