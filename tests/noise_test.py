"""The random numbers: of keys and counters alone, the same bits everywhere, nothing in memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, evolve, noise, recombine
from egd_optax.backend import arithmetic, packing, random

# The numbers are nobody's interface; what a run draws of them is pinned in key_schedule_test.py.
from egd_optax.core.perturbation import draw_rows

pytestmark = pytest.mark.exact

KEY = jnp.array([7, 2**31 + 9], jnp.uint32)
SHAPES = [(), (5,), (4, 3), (2, 3, 4), (0, 3)]

KINDS = pytest.mark.parametrize(
    "kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low_rank"]
)


@pytest.mark.parametrize("number", [0, 3, 2**31 - 1])
def test_a_derived_key_is_that_of_jax(number):
    key = jax.random.wrap_key_data(KEY, impl="threefry2x32")
    expected = jax.random.key_data(jax.random.fold_in(key, number))
    np.testing.assert_array_equal(random.derive(KEY, 0, number), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [0, 64])
def test_numbers_are_those_of_their_counters(shape, start):
    """In row-major order, whatever the shape, from the first one on."""
    draw = jnp.int32(3)
    flat = random.normals(KEY, draw, start + jnp.arange(math.prod(shape), dtype=jnp.uint32))
    numbers = random.normals_of(KEY, draw, start, shape)
    np.testing.assert_allclose(numbers, flat.reshape(shape), rtol=1e-6)


def test_numbers_are_standard_normal_and_draws_differ():
    numbers = np.stack([random.normals_of(KEY, jnp.int32(i), 0, (200, 100)) for i in range(3)])
    assert abs(numbers.mean()) < 0.02
    np.testing.assert_allclose([numbers.std(), (numbers**4).mean()], [1, 3], rtol=0.03)
    correlations = np.corrcoef(numbers.reshape(3, -1))
    assert np.abs(correlations[~np.eye(3, dtype=bool)]).max() < 0.03


def test_a_draw_takes_no_memory_but_its_own():
    leaf = jnp.ones((256, 256))
    own = jax.jit(lambda key, leaf: leaf + random.normals_of(key, jnp.int32(1), 0, leaf.shape))
    of_jax = jax.jit(
        lambda key, leaf: leaf + jax.random.normal(jax.random.wrap_key_data(key), leaf.shape)
    )
    own, plain = (fn.lower(KEY, leaf).compile().memory_analysis() for fn in (own, of_jax))
    assert own.temp_size_in_bytes < 0.1 * leaf.nbytes
    assert plain.temp_size_in_bytes > leaf.nbytes  # else the generator here is needless


def test_more_entries_than_a_counter_has_get_keys_of_their_own():
    """Traced only: such an array has no place here."""
    text = str(jax.make_jaxpr(lambda: random.normals_of(KEY, jnp.int32(0), 0, (8, 2**15, 2**15)))())
    assert "u32[8,32768,32768]" in text
    assert "u32[8,2]" in text  # a key for each index of the first axis


def drawn(kind, leaf, member=1, sigma=0.37):
    """A member of one leaf at its root mean square, from a run that does not move."""
    seen = []

    def value_fn(params):
        jax.debug.callback(lambda leaf: seen.append(np.asarray(leaf)), params, ordered=True)
        return 0.0 * jnp.real(params.ravel()[0]).astype(jnp.float32)

    tx = evolve(optax.set_to_zero(), evolve_every=1, population_size=4, sigma=sigma, noise=kind)
    tx.update(leaf, tx.init(leaf), leaf, value_fn=value_fn)
    jax.effects_barrier()
    return seen[member]


@pytest.mark.on_cpu  # JAX passes no ordered effect through a program that uses host memory
def test_the_noise_of_rank_one_is_a_product():
    leaf = jnp.zeros((300, 200))
    member = drawn(noise.low_rank(relative=False), leaf)
    assert np.linalg.matrix_rank(member, tol=1e-4) == 1
    assert np.linalg.matrix_rank(drawn(noise.gaussian(relative=False), leaf)) == 200


def test_numbers_of_factors_have_half_of_their_digits():
    """So that a product of two is exact, wherever XLA computes it."""
    leaf = jnp.zeros((300, 200))
    layout = packing.lay_out([leaf], [leaf], noise.low_rank().normals, lambda _: False)
    left, right = layout.blocks[0].read(draw_rows(layout, KEY[None], jnp.int32(0)))
    product = np.multiply.outer(np.float64(left[0, :, 0]), np.float64(right[0, :, 0]))
    np.testing.assert_array_equal(product, product.astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_member_in_low_precision_is_rounded_by_an_operation_that_xla_keeps(dtype):
    """It may leave out a cast that another one undoes; not on CPU, so this reads the program."""
    leaf, deviation = jnp.ones((4, 3), dtype), jnp.ones((4, 3))
    digits = jnp.finfo(dtype).nmant
    assert f"mantissa_bits={digits}" in str(jax.make_jaxpr(arithmetic.add)(leaf, deviation))
    wide = leaf.astype(jnp.float32)
    assert "reduce_precision" not in str(jax.make_jaxpr(arithmetic.add)(wide, deviation))


@pytest.mark.wide
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@KINDS
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("memory", ["device", "replay"])
def test_the_elite_that_is_taken_is_the_one_that_was_evaluated(dtype, kind, antithetic, memory):
    """To the bit, and in the parameters' precision: its fitness is one of its entries."""
    parent = jax.random.normal(jax.random.key(5), (24, 16), dtype)

    def value_fn(params):
        product = params @ jnp.ones((16, 2), dtype)  # which XLA:CPU may form the member within
        return params[3, 5].astype(jnp.float32) + 0 * product[0, 0]

    tx = evolve(
        optax.identity(), evolve_every=1, population_size=12, sigma=0.3, noise=kind,
        antithetic=antithetic, recombine=recombine.elite_weights(jnp.zeros_like),
        execution=Execution(memory=memory),
    )  # fmt: skip
    start = jnp.zeros_like(parent)  # what is added to it is what is got

    @jax.jit
    def step(key_data):
        state = tx.init(start)._replace(key_data=key_data)
        updates, state = tx.update(parent, state, start, value_fn=value_fn)
        return optax.apply_updates(start, updates), state.info

    for key in range(8):
        params, info = step(jnp.array([0, key], jnp.uint32))
        assert info.accepted
        assert info.best_fitness < info.parent_fitness == parent[3, 5]
        assert params[3, 5].astype(jnp.float32) == info.best_fitness
