"""The state of an optimizer without its arrays: a checkpoint is restored into it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding
import optax

from egd_optax._checks import check_base
from egd_optax.backend.placement import inferred_specs, is_concrete, replicated_over
from egd_optax.base.arguments import NUMBERS, arrays_of, shapes_of


def abstract_state(tx: optax.GradientTransformation, params: optax.Params) -> Any:
    """The state that `tx.init(params)` makes, as `jax.ShapeDtypeStruct` with shardings.

    A serializer restores a checkpoint into this template. The template says where the run goes on,
    which may be another mesh than the one that it was saved on.

    A leaf that is made from a parameter is sharded like it, moments for example. All other leaves
    are whole on each device of the parameters: counters, keys, the report of a cycle. All are in
    the memory of the device.

    Args:
        tx: any optax transformation: `evolve(...)`, or a wrapper around it.
        params: pytree of arrays, or of `jax.ShapeDtypeStruct` with a sharding. They are on one
            mesh, of axes of any type, or on one device. If moments are sharded in another way than
            the parameters, as in ZeRO-1, pass structs with the shardings of the moments.

    Returns:
        A pytree like `tx.init(params)`, with a `jax.ShapeDtypeStruct` for each array. `tx.init` is
        traced twice. Nothing is compiled, run or allocated.

    Raises:
        TypeError: `tx` is no optimizer.
        ValueError: `params` do not say where they are, or are on several meshes or devices. Or JAX
            cannot tell how `tx.init` shards its state.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
        >>> from egd_optax import evolve
        >>> from egd_optax.checkpoint import abstract_state
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
        >>> rows = NamedSharding(mesh, PartitionSpec("fsdp", None))
        >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=rows)}
        >>> state = abstract_state(evolve(optax.adam(0.1)), params)
        >>> state.base_state[0].mu["w"].sharding == rows, state.count.sharding.is_fully_replicated
        (True, True)
    """
    init = check_base(tx, "tx").init
    sharding = _replicated_like(params)
    state = shapes_of(init, jax.tree.map(_unplaced, params))
    structs, with_structs = arrays_of(state, jax.ShapeDtypeStruct)
    shardings = [sharding] * len(structs)
    if isinstance(sharding, NamedSharding):
        shardings = _inferred(init, params, sharding.mesh)
    pairs = zip(structs, shardings, strict=True)
    return with_structs([struct.update(sharding=sharding) for struct, sharding in pairs])


def _unplaced(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _inferred(init: Callable[[Any], Any], params: optax.Params, mesh: Any) -> list[Sharding]:
    """The shardings of the arrays of a state, from those of the parameters."""
    try:
        specs = inferred_specs(lambda params: arrays_of(init(params), NUMBERS)[0], params, mesh)
    # Explicit axes refuse operations whose result can be sharded in several ways, with exceptions
    # that JAX does not export. `init` was traced before, without a mesh: it is not at fault.
    except Exception as error:
        raise ValueError(
            f"`tx` must have an `init` that JAX can shard, got {type(error).__name__}: write the "
            "shardings yourself, `jax.tree.map(lambda leaf: leaf.update(sharding=...), "
            "jax.eval_shape(tx.init, params))`."
        ) from error
    return [NamedSharding(mesh, spec) for spec in specs]


def _replicated_like(params: optax.Params) -> Sharding:
    """The sharding of an array that each device of the parameters holds whole."""
    leaves = jax.tree.leaves_with_path(params)
    structs = [(path, leaf) for path, leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    for path, leaf in structs:
        if leaf.sharding is None:
            raise ValueError(
                f"`params{jax.tree_util.keystr(path)}` must say where it is, got {leaf} without a "
                "sharding: pass `jax.ShapeDtypeStruct(shape, dtype, sharding=...)`, or an array."
            )
    arrays = [leaf for _, leaf in leaves if is_concrete(leaf)]
    placed = [leaf for _, leaf in structs] + [leaf for leaf in arrays if leaf.committed]
    shardings = {leaf.sharding for leaf in placed or arrays}
    sharding = replicated_over(shardings)
    if sharding is None:
        raise ValueError(
            f"`params` must be on one mesh or one device, got {shardings or 'none'}: call "
            "`jax.device_put(params, shardings)`, or pass `jax.ShapeDtypeStruct` with a sharding."
        )
    return sharding
