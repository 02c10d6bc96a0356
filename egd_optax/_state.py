"""The state of `evolve`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_like
from egd_optax.core import info
from egd_optax.core.info import CycleInfo
from egd_optax.core.spec import CycleSpec, StrategyState


class EvolveState(NamedTuple):
    """State of `evolve`: some scalars and the state of the base optimizer.

    Attributes:
        count: int32 `[]`, steps taken. One that `optax.MultiSteps` in the base skips is none.
        cycle: int32 `[]`, cycles run.
        key_data: uint32 `[2]`, the raw threefry key that all noise derives from. Typed keys
            do not pass through serialization or tree arithmetic.
        base_state: state of the base optimizer.
        info: the report of the latest cycle, `CycleInfo`.
        strategy_state: the state of `noise`, `es_optimizer` and `accept`, `StrategyState`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import evolve
        >>> tx = evolve(optax.sgd(0.1), evolve_every=2)
        >>> params = jnp.ones(3)
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...   updates, state = tx.update(params, state, params, value_fn=jnp.sum)
        >>> int(state.count), int(state.cycle), bool(jnp.isfinite(state.info.best_fitness))
        (4, 2, True)
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's states
    cycle: jax.Array
    key_data: jax.Array
    base_state: optax.OptState
    info: CycleInfo
    strategy_state: StrategyState = StrategyState()


def check_state(state: Any, spec: CycleSpec) -> None:
    """Refuses the state of another optimizer, which a checkpoint may give back."""
    if not isinstance(state, EvolveState):
        raise TypeError(
            f"`state` must be an EvolveState, got {type(state).__name__}: restore it into the "
            "structure of `tx.init(params)`."
        )
    whole = jax.ShapeDtypeStruct((), jnp.int32)
    key_data = jax.ShapeDtypeStruct((2,), jnp.uint32)
    own = state.count, state.cycle, state.key_data, state.info
    expected = whole, whole, key_data, info.info_like(spec.aux)
    for name, found, like in zip(
        ("count", "cycle", "key_data", "info"), own, expected, strict=True
    ):
        check_like(name, found, like)


def holds_evolve(state: optax.OptState) -> bool:
    """Whether a state holds one of an `evolve`."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, EvolveState))
    return any(isinstance(node, EvolveState) for node in nodes)
