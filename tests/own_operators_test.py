"""A noise and a weighting of one's own keep every promise, without knowing of them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, evolve, noise, recombine

DEVICES = 8
X = np.random.default_rng(3).normal(size=(24, 16)).astype(np.float32)
Y = np.sin(X[:, :4])


@dataclasses.dataclass(frozen=True)
class HeavyTailed(noise.Noise):
    """Student's t of two degrees of freedom, times a number: its variance is infinite."""

    times: float = 0.5

    def draw(self, key, leaf):
        return (jax.random.uniform(key, leaf.shape, minval=1e-6, maxval=1 - 1e-6),)

    def form(self, parts, leaf):
        (u,) = parts
        return self.times * (2 * u - 1) / jnp.sqrt(2 * u * (1 - u))


class WholeRows(noise.Noise):
    """Moves whole rows: one number for each."""

    def normals(self, leaf):
        return (leaf.shape[:1],)

    def form(self, parts, leaf):
        return jnp.broadcast_to(parts[0].reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)


class TwoScales(noise.Noise):
    """A sum of products of parts, which XLA may contract in more ways than one."""

    def normals(self, leaf):
        return leaf.shape[:1], leaf.shape[-1:], ()

    def form(self, parts, leaf):
        rows, columns, all_alike = parts
        rows = rows.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.broadcast_to(0.7 * rows * columns + all_alike, leaf.shape)


class TwoScalesDrawn(TwoScales):
    """The same of numbers that are not all normal."""

    def draw(self, key, leaf):
        keys = jax.random.split(key, 3)
        rows = jax.random.normal(keys[0], leaf.shape[:1])
        columns = jax.random.laplace(keys[1], leaf.shape[-1:])
        return rows, columns, jax.random.normal(keys[2])


def better_half(fitness):
    """Tells better from worse and no more, for fitness in batches is rounded in another way."""
    better = fitness < jnp.median(fitness)
    return better / jnp.maximum(jnp.sum(better), 1) - ~better / fitness.size


def logarithmic(fitness):
    weights = jnp.log(fitness.size + 0.5) - jnp.log(jnp.arange(1, fitness.size + 1))
    return weights / weights.sum()


class BestAndThird(recombine.Recombine):
    """Two of the three best, told from the rest by their fitness alone."""

    def support(self, population_size):
        return 3

    def weights(self, fitness, support):
        ordered = jnp.sort(fitness)
        return 0.75 * (fitness == ordered[0]) + 0.25 * (fitness == ordered[2])


NOISES = {
    "t": HeavyTailed(),
    "rows": WholeRows(),
    "two scales": TwoScales(),
    "two scales drawn": TwoScalesDrawn(),
}
RULES = {
    "all": recombine.member_weights(better_half),
    "elites": recombine.elite_weights(logarithmic, 0.5),
    "subclass": BestAndThird(),
}
own = pytest.mark.parametrize(
    ("kind", "rule", "antithetic"),
    [
        ("t", "all", False),
        pytest.param("t", "elites", True, marks=pytest.mark.exact),
        ("t", "subclass", False),
        ("rows", "all", True),
        # XLA may contract these sums and products in more ways than one.
        pytest.param("two scales", "elites", False, marks=pytest.mark.exact),
        pytest.param("two scales drawn", "elites", True, marks=pytest.mark.exact),
    ],
)


def initial_params():
    draw = np.random.default_rng(5).normal
    return {
        "w0": draw(0, 1 / 4, (16, 32)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "w1": jnp.asarray(draw(0, 1 / 6, (32, 4)), jnp.bfloat16),
    }


def loss(params):
    hidden = jnp.tanh(X @ params["w0"])
    out = (hidden @ params["w1"].astype(jnp.float32)) + params["b"]
    return jnp.mean((out - Y) ** 2)


def optimizer(kind, rule, *, antithetic, **execution):
    # The base does nothing, so that what is compared bit for bit is the cycle.
    return evolve(
        optax.set_to_zero(), evolve_every=1, population_size=16, sigma=0.3, generations=2,
        noise=NOISES[kind], recombine=RULES[rule], antithetic=antithetic, accept=accept.always(),
        execution=Execution(**execution), key=3,
    )  # fmt: skip


def step_of(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, steps=2):
    step, state = step_of(tx), tx.init(params)
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    return params, state


def on_one_device(tree):
    return jax.device_put(tree, jax.devices()[0])


@pytest.mark.wide
@own
def test_the_same_bits_everywhere(kind, rule, antithetic):
    """In all memory modes, in batches, and after a resume; on eight devices but for a sum."""

    def run(**execution):
        tx = optimizer(kind, rule, antithetic=antithetic, **execution)
        return train(tx, on_one_device(initial_params()))[0]

    tx = optimizer(kind, rule, antithetic=antithetic)
    step, params = step_of(tx), on_one_device(initial_params())
    saved = jax.device_get(jax.block_until_ready(step(params, tx.init(params))))
    params, state = step(*on_one_device(saved))
    assert bool(state.info.accepted)
    assert loss(params) < loss(initial_params())
    initial = on_one_device(initial_params())
    in_one_run = step(*step(initial, tx.init(initial)))
    chex.assert_trees_all_equal(in_one_run[0], params)

    stored = RULES[rule].support(16) is not None
    modes = ({"memory": "replay"},) if stored else ()
    for execution in (*modes, {"candidate_batch_size": 4}):
        chex.assert_trees_all_equal(run(**execution), params)

    mesh = jax.make_mesh((DEVICES,), ("pop",), axis_types=(AxisType.Auto,))
    whole = jax.device_put(initial_params(), NamedSharding(mesh, PartitionSpec()))
    tx = optimizer(kind, rule, antithetic=antithetic, population_axis="pop", mesh=mesh)
    on_eight, on_one = jax.device_get((train(tx, whole)[0], params))
    # Each device sums some members, and bfloat16 has eight digits.
    for ours, expected in zip(*map(jax.tree.leaves, (on_eight, on_one)), strict=True):
        rtol = 2e-2 if expected.dtype == jnp.bfloat16 else 1e-6
        chex.assert_trees_all_close(ours, expected, atol=2e-5, rtol=rtol)


def test_rows_move_as_wholes():
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, noise=WholeRows(), accept=accept.always(), sigma=0.5
    )
    params = {"w": jnp.ones((5, 7))}
    value_fn = lambda params: jnp.sum(params["w"])  # noqa: E731
    updates, _ = tx.update(params, tx.init(params), params, value_fn=value_fn)
    assert jnp.unique(updates["w"][:, 0]).size == 5
    np.testing.assert_array_equal(updates["w"], jnp.broadcast_to(updates["w"][:, :1], (5, 7)))


@pytest.mark.exact
def test_a_sum_of_noise_of_few_numbers_is_flat_in_the_population():
    params = jnp.ones((512, 512))

    def copies(size):
        tx = evolve(
            optax.set_to_zero(), evolve_every=1, population_size=size, noise=WholeRows(),
            recombine=recombine.centered_rank(), accept=accept.always(),
        )  # fmt: skip
        step = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=lambda p: jnp.sum(p**2)))
        memory = step.lower(params, tx.init(params)).compile().memory_analysis()
        return memory.temp_size_in_bytes / params.nbytes

    assert copies(65) < copies(4) + 0.5


def exploded(plain):
    """Now and then infinite or no number, though not where it is tried out, on a scalar."""
    return plain if plain.ndim == 0 else jnp.where(plain > 1, jnp.inf * (plain - 1.5), plain)


class ExplodesFormed(noise.Noise):
    """Where numbers are formed, of which the library may hold many."""

    def form(self, parts, leaf):
        return exploded(parts[0])


class ExplodesDrawn(noise.Noise):
    """Where they are drawn."""

    def draw(self, key, leaf):
        return (exploded(jax.random.normal(key, leaf.shape)),)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("kind", [ExplodesFormed(), ExplodesDrawn()], ids=["formed", "drawn"])
@pytest.mark.parametrize("rule", ["all", "elites"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_noise_that_is_not_finite_moves_nothing(kind, rule, batch_size):
    """Not even where `value_fn` does not look, and no entry of another member."""
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, noise=kind, recombine=RULES[rule],
        accept=accept.always(), execution=Execution(candidate_batch_size=batch_size),
    )  # fmt: skip
    params = {"seen": jnp.ones([]), "unseen": jnp.ones(400)}
    updates, state = jax.jit(
        lambda p, s: tx.update(p, s, p, value_fn=lambda p: jnp.abs(p["seen"]))
    )(params, tx.init(params))
    assert bool(state.info.accepted)
    chex.assert_tree_all_finite(updates)
    # An entry that explodes in one of several members is still that of the others.
    assert jnp.mean(updates["unseen"] != 0) > 0.9


@dataclasses.dataclass(frozen=True)
class Measured(ExplodesFormed):
    """Sums up what it is made of."""

    def statistic(self, unit):
        return jnp.abs(unit)

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def adapt(self, state, outcome):
        return outcome.statistic


def test_a_statistic_has_no_noise_that_is_not_finite():
    tx = evolve(optax.set_to_zero(), evolve_every=1, noise=Measured(), accept=accept.always())
    params = {"seen": jnp.ones([]), "unseen": jnp.ones(400)}
    _, state = tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.abs(p["seen"]))
    statistic = state.strategy_state.noise
    chex.assert_tree_all_finite(statistic)
    assert (statistic["unseen"] > 0).any()
