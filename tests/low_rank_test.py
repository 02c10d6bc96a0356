"""Noise of low rank: its rank, its spread, and where it is drawn in full."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import record_cycle

from egd_optax import Execution, accept, egd, evolve, noise

SIGMA = 0.5
KINDS = (noise.gaussian(), noise.low_rank())


def drawn(shape, members, kind, dtype=jnp.float32):
    """The noise that a cycle adds to a leaf of zeros, `[members, *shape]`."""
    seen = []

    def value_fn(params):
        jax.debug.callback(lambda member: seen.append(np.array(member)), params, ordered=True)
        return jnp.sum(jnp.abs(params))

    tx = evolve(
        optax.sgd(0.0), evolve_every=1, population_size=members + 1, sigma=SIGMA, noise=kind,
        execution=Execution(memory="replay"),
    )  # fmt: skip
    params = jnp.zeros(shape, dtype)
    jax.block_until_ready(tx.update(params, tx.init(params), params, value_fn=value_fn))
    jax.effects_barrier()
    return np.stack(seen)[1 : members + 1]


@pytest.mark.crossed(3)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(40, 30), (3, 3, 8, 16), (5, 12, 10)])
def test_a_leaf_moves_by_a_matrix_of_this_rank_over_its_last_axis(shape, rank):
    for member in drawn(shape, 4, noise.low_rank(rank, relative=False)):
        values = np.linalg.svd(member.reshape(-1, shape[-1]), compute_uv=False)
        assert values[rank - 1] > 1e-2 * values[0]
        assert np.all(values[rank:] < 1e-5 * values[0])


@pytest.mark.crossed(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("rank", [1, 4])
def test_every_entry_has_the_promised_standard_deviation(rank, dtype):
    members = drawn((12, 12), 3000, noise.low_rank(rank, relative=False), dtype)
    spread = np.sqrt(np.mean(np.abs(members) ** 2, axis=0))
    # An entry's fourth moment is 9 at rank 1, so its mean square is known to 5%.
    np.testing.assert_allclose(spread, SIGMA, rtol=0.15)
    assert np.abs(members.mean(axis=0)).max() < 5 * SIGMA / np.sqrt(3000)
    np.testing.assert_allclose(np.sqrt(np.mean(np.abs(members) ** 2)), SIGMA, rtol=0.02)


def test_entries_members_and_rows_are_uncorrelated():
    members = drawn((8, 8), 3000, noise.low_rank(relative=False)).reshape(3000, -1)
    correlation = np.corrcoef(members.T) - np.eye(64)
    assert np.abs(correlation).max() < 0.15


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("shape", [(), (30,), (1, 30), (30, 1), (2, 2)])
def test_noise_is_drawn_in_full_where_factors_would_take_as_many_numbers(shape):
    absolute = (noise.gaussian(relative=False), noise.low_rank(relative=False))
    np.testing.assert_array_equal(*(drawn(shape, 4, kind) for kind in absolute))
    params = jnp.ones(shape)
    txs = [egd(0.0, evolve_every=1, noise=kind, accept=accept.always()) for kind in KINDS]
    value_fn = lambda p: jnp.sum(p**2)  # noqa: E731
    updates = [tx.update(params, tx.init(params), params, value_fn=value_fn)[0] for tx in txs]
    chex.assert_trees_all_close(*updates, atol=3e-7)  # two units in the last place of one
    assert (jnp.abs(updates[0]) > 1e-4).any()


@pytest.mark.wide
@pytest.mark.exact
def test_vectors_move_as_with_gaussian_noise_and_matrices_do_not():
    gaussian, low_rank = (record_cycle(noise=kind)[0] for kind in KINDS)
    for full, low in zip(gaussian, low_rank, strict=True):
        chex.assert_trees_all_equal(full["b"], low["b"])
    assert (gaussian[1]["a"] != low_rank[1]["a"]).any()


@pytest.mark.parametrize("memory", ["host", "device", "replay"])
def test_it_descends_on_a_matrix_without_gradient(memory):
    goal = jax.random.normal(jax.random.key(2), (12, 8))
    loss = lambda p: jnp.mean(jnp.round(4 * (p - goal)) ** 2)  # noqa: E731
    tx = egd(
        0.0, evolve_every=1, population_size=16, sigma=0.1, noise=noise.low_rank(relative=False),
        execution=Execution(memory=memory),
    )  # fmt: skip

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.zeros((12, 8))
    (end, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=60))((start, tx.init(start)))
    assert loss(end) < 0.7 * loss(start)


LAYERS = lambda leaf: 0 if len(leaf.shape) == 3 else ()  # noqa: E731


@pytest.mark.crossed(3)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 20, 15), 0), ((20, 6, 15), -2), ((20, 15, 6), 2), ((2, 3, 20, 15), (0, 1))],
)
def test_each_matrix_of_a_stack_has_factors_of_its_own(shape, axes, rank):
    kind = noise.low_rank(rank, relative=False, batch_axis=axes)
    stacked = np.atleast_1d(axes)
    for member in drawn(shape, 3, kind):
        matrices = np.moveaxis(member, stacked, range(stacked.size)).reshape(6, 20, 15)
        values = np.linalg.svd(matrices, compute_uv=False)
        assert np.all(values[:, rank - 1] > 1e-2 * values[:, 0])
        assert np.all(values[:, rank:] < 1e-5 * values[:, :1])
        # Were B shared, the row spaces of all layers would be one.
        assert np.linalg.matrix_rank(matrices.reshape(-1, 15), tol=1e-3) == min(6 * rank, 15)
        flat = matrices.reshape(6, -1)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        assert np.abs(flat @ flat.T - np.eye(6)).max() < 0.6


def test_without_a_batch_axis_the_layers_of_a_leaf_share_a_factor():
    (member,) = drawn((6, 20, 15), 1, noise.low_rank(relative=False))
    assert np.linalg.matrix_rank(member.reshape(-1, 15), tol=1e-3) == 1


@pytest.mark.crossed(1)
@pytest.mark.parametrize("rank", [1, 4])
def test_every_entry_of_a_stack_has_the_promised_standard_deviation(rank):
    members = drawn((3, 12, 12), 3000, noise.low_rank(rank, relative=False, batch_axis=0))
    np.testing.assert_allclose(np.sqrt(np.mean(members**2, axis=0)), SIGMA, rtol=0.15)
    np.testing.assert_allclose(np.sqrt(np.mean(members**2)), SIGMA, rtol=0.02)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("shape", [(5, 12), (12, 1, 5)])
def test_what_is_no_stack_of_matrices_is_drawn_in_full(shape):
    kinds = noise.gaussian(relative=False), noise.low_rank(relative=False, batch_axis=0)
    np.testing.assert_array_equal(*(drawn(shape, 4, kind) for kind in kinds))


@pytest.mark.wide
@pytest.mark.exact
def test_leaves_that_a_function_leaves_out_have_the_noise_that_they_had():
    shared, own = (record_cycle(noise=noise.low_rank(batch_axis=axes))[0] for axes in ((), LAYERS))
    chex.assert_trees_all_equal(shared, own)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("antithetic", [False, True])
def test_stacks_are_the_same_in_all_memory_modes_and_in_batches(rank, antithetic):
    params = {"layers": jnp.ones((4, 12, 9)), "head": jnp.ones((12, 7)), "bias": jnp.ones((4, 9))}

    def outcome(**execution):
        tx = evolve(
            optax.sgd(0.0), evolve_every=1, population_size=8, antithetic=antithetic,
            noise=noise.low_rank(rank, batch_axis=LAYERS), accept=accept.always(),
            execution=Execution(**execution),
        )  # fmt: skip
        value_fn = lambda p: sum(jnp.sum(jnp.sin(5 * leaf)) for leaf in jax.tree.leaves(p))  # noqa: E731
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.jit(lambda: tx.update(zeros, tx.init(params), params, value_fn=value_fn)[0])()

    plain = outcome()
    assert np.linalg.matrix_rank(np.asarray(plain["layers"]).reshape(-1, 9), tol=1e-5) > 2
    for execution in ({"memory": "replay"}, {"memory": "device"}, {"candidate_batch_size": 4}):
        chex.assert_trees_all_equal(plain, outcome(**execution))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_sum_over_members_is_that_of_their_noise(rank):
    kind = noise.low_rank(rank, batch_axis=1)
    leaf = jnp.zeros((12, 3, 10))
    draw = np.random.default_rng(0).normal
    parts = tuple(jnp.float32(draw(size=(5, *shape))) for shape in kind.normals(leaf))
    weights = jnp.array([1.0, -2.0, 0.0, 0.5, 3.0])
    left, right = (np.asarray(part, np.float64) for part in parts)
    expected = np.einsum("n,nabr,nbcr->abc", weights, left, right) / np.sqrt(rank)
    np.testing.assert_allclose(kind.form_sum(parts, weights, leaf), expected, atol=1e-5)
    each = jax.vmap(lambda *made_of: kind.form(made_of, leaf))(*parts)
    np.testing.assert_allclose(jnp.tensordot(weights, each, 1), expected, atol=1e-5)


def test_a_batch_axis_is_checked():
    with pytest.raises(TypeError, match="`batch_axis` must be an axis"):
        noise.low_rank(batch_axis="layers")
    tx = egd(0.1, evolve_every=1, noise=noise.low_rank(batch_axis=2))
    params = jnp.ones((8, 8))
    with pytest.raises(ValueError, match=r"`batch_axis` must be axes of the leaf, got \(2,\)"):
        tx.update(params, tx.init(params), params, value_fn=jnp.sum)
