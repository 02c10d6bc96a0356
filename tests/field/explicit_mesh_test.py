"""Meshes of explicit axes, where the sharding is a part of an array's type, beside automatic ones.

Every array comes back in the sharding that it had, and the run is that of one device.
"""

from additions import Annealed, Separable
import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax
import pytest

from egd_optax import Execution, evolve, noise, recombine
from xla_options import known

# Leaves of at most 2**15 numbers are held side by side, unless they are sharded.
SHAPES = {"small": (16, 4), "large": (512, 80)}
WHOLE, DIVIDED = PartitionSpec(), PartitionSpec("data")


def params_of(size):
    shape = SHAPES[size]
    numbers = jnp.linspace(1.0, 2.0, shape[0] * shape[1]).reshape(shape)
    return {"w": numbers, "b": jnp.ones(shape[1])}


def loss(params):
    return sum(jnp.mean((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def gradient(params):
    return jax.tree.map(lambda leaf: 0.5 * leaf, params)


SETTINGS = {
    "plain": {},
    "reset": {"reset_base": True},
    "reset by a function": {"reset_base": lambda old, fresh: fresh},
    "direction": {"es_optimizer": optax.adam(0.1), "recombine": recombine.centered_rank()},
    "adapting noise": {"noise": Separable(), "generations": 2},
    "rule with a state": {"accept": Annealed()},
    "low rank pairs": {"noise": noise.low_rank(), "antithetic": True},
    "replay": {"execution": Execution(memory="replay")},
    "batches": {"execution": Execution(candidate_batch_size=4)},
}


def gathered(mesh):
    """Updates in the sharding of parameters that are whole, whatever the moments have."""
    if mesh is None or not mesh.are_all_axes_explicit:
        return optax.identity()
    whole = NamedSharding(mesh, WHOLE)
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, whole), updates)
    )


def run(settings, size, mesh=None, *, of_params=WHOLE, of_moments=WHOLE):
    """The parameters and the state after four steps, and the shardings before and after."""
    es_optimizer = settings.get("es_optimizer")
    if es_optimizer is not None:
        settings = settings | {"es_optimizer": optax.chain(es_optimizer, gathered(mesh))}
    base = optax.chain(optax.adam(0.05), gathered(mesh) if of_params == WHOLE else optax.identity())
    tx = evolve(base, evolve_every=2, population_size=8, sigma=0.2, **settings)
    start = params_of(size), tx.init(params_of(size))
    if mesh is not None:
        shapes = {leaf.shape for leaf in jax.tree.leaves(start[0])}

        def place(tree, spec):
            is_divided = lambda leaf: leaf.shape in shapes and leaf.shape[0] % 8 == 0  # noqa: E731
            return jax.tree.map(
                lambda leaf: jax.device_put(
                    leaf, NamedSharding(mesh, spec if is_divided(leaf) else WHOLE)
                ),
                tree,
            )

        start = place(start[0], of_params), place(start[1], of_moments)

    def step(params, state):
        updates, state = tx.update(gradient(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    # On automatic axes XLA would choose the shardings of what a step returns.
    chosen = mesh is not None and mesh.are_all_axes_auto
    to = jax.tree.map(lambda leaf: leaf.sharding, start) if chosen else None
    compiled = jax.jit(step, out_shardings=to).lower(*start).compile(known("hurried"))
    now = start
    for _ in range(4):
        now = jax.block_until_ready(compiled(*now))
    assert int(now[1].cycle) == 2
    return now, start


def assert_shardings_stay(after, before):
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True
    ):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim), jax.tree_util.keystr(path)


def settings_on(axis, mesh, settings):
    if axis is None:
        return settings
    execution = settings.get("execution", Execution())
    batch_size = execution.candidate_batch_size
    divided = Execution(population_axis=axis, mesh=mesh, candidate_batch_size=batch_size)
    return settings | {"execution": divided}


@pytest.mark.crossed(6)
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, "small") for name in SETTINGS), ("plain", "large"), ("direction", "large")],
)
@pytest.mark.parametrize(
    ("axis", "of_params", "of_moments"),
    [
        (None, WHOLE, DIVIDED),
        (None, DIVIDED, DIVIDED),
        ("pop", DIVIDED, DIVIDED),
    ],
    ids=["moments", "all divided", "members and all"],
)
def test_shardings_stay_and_the_run_is_that_of_one_device(
    axis, of_params, of_moments, name, size, axis_type
):
    expected, _ = run(SETTINGS[name], size)
    sizes = {"data": 8} if axis is None else {"pop": 2, "data": 4}
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(axis_type,) * len(sizes))
    settings = settings_on(axis, mesh, SETTINGS[name])
    with jax.set_mesh(mesh):
        found, before = run(settings, size, mesh, of_params=of_params, of_moments=of_moments)
    assert_shardings_stay(found, before)
    chex.assert_trees_all_close(found[0], expected[0], atol=2e-5)
    assert bool(found[1].info.accepted) == bool(expected[1].info.accepted)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_a_reset_outside_of_jit_keeps_the_shardings(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    tx = evolve(optax.adam(0.05), evolve_every=1, sigma=0.2, reset_base=True)
    with jax.set_mesh(mesh):
        params = jax.device_put({"w": jnp.ones((16, 4))}, NamedSharding(mesh, DIVIDED))
        state = jax.jit(tx.init)(params)
        before = jax.tree.map(
            lambda leaf: jax.device_put(
                leaf, NamedSharding(mesh, DIVIDED if leaf.shape == (16, 4) else WHOLE)
            ),
            state,
        )
        value_fn = lambda params: jnp.sum(params["w"])  # noqa: E731
        _, after = tx.update(gradient(params), before, params, value_fn=value_fn)
        assert after.info.accepted
        assert (after.base_state[0].mu["w"] == 0).all()
        assert_shardings_stay(after.base_state, before.base_state)
