"""The draws: the bits of `jax.random`, nothing but the draw in memory, the same bits everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, evolve, noise, recombine
from egd_optax._cycle import threefry
from egd_optax._cycle.members import Members
from egd_optax._cycle.parent import Genome, plus, wide_dtype
from egd_optax._cycle.stacks import stacks_of

pytestmark = pytest.mark.exact

KEY_DATA = jnp.array([7, 2**31 + 9], jnp.uint32)
SHAPES = [(), (5,), (4, 3), (2, 3, 4), (0, 3)]


KINDS = pytest.mark.parametrize(
    "kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low_rank"]
)


def members_of(key, std, leaf, kind):
    """A parent of one leaf, and a member."""
    return Members(
        genome=Genome((leaf,), None, (None,)),
        stacks=stacks_of([leaf], [leaf], lambda leaf: leaf.shape),
        mutating=(0,),
        key=key,
        first=0,
        stds=(std,),
        size=2,
        antithetic=False,
        noise=kind,
    )


def both_keys():
    plain = jax.random.wrap_key_data(KEY_DATA, impl="threefry2x32")
    return plain, threefry.wrap_key_data(KEY_DATA)


@pytest.mark.wide
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_numbers_are_those_of_jax(shape, dtype, transform):
    for fold in (0, 3, 2**31 - 1):

        @transform
        def normal(key, fold=fold):
            return jax.random.normal(jax.random.fold_in(key, fold), shape, dtype)

        np.testing.assert_array_equal(*map(normal, both_keys()))


@pytest.mark.crossed(4)
@pytest.mark.parametrize("shape", SHAPES)
def test_many_keys_at_once_draw_what_each_draws(shape):
    key = both_keys()[1]
    folds = jnp.arange(3)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, folds)
    together = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    one_by_one = [jax.random.normal(jax.random.fold_in(key, fold), shape) for fold in folds]
    np.testing.assert_array_equal(together, jnp.stack(one_by_one))


@pytest.mark.wide
def test_numbers_do_not_depend_on_how_jax_is_set_up():
    def numbers():
        return jax.random.normal(both_keys()[1], (5, 3), jnp.complex64)

    default = numbers()
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(numbers(), default)


def test_counts_of_both_halves_are_left_to_jax():
    def text(shape):
        return str(jax.make_jaxpr(lambda key: threefry._random_bits(key, 32, shape))(KEY_DATA))

    assert "threefry2x32" in text((2**17, 2**16))
    assert "threefry2x32" not in text((2**15, 2**16))


def test_a_draw_takes_no_memory_but_its_own():
    draw = jax.jit(lambda key, leaf: leaf + jax.random.normal(key, leaf.shape))
    leaf = jnp.ones((256, 256))
    plain, own = (draw.lower(key, leaf).compile().memory_analysis() for key in both_keys())
    assert own.temp_size_in_bytes < 0.1 * leaf.nbytes
    assert plain.temp_size_in_bytes > leaf.nbytes  # else the generator here is needless


@pytest.mark.crossed(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@KINDS
def test_noise_is_rounded_before_it_is_added(kind, dtype):
    """So that it does not matter whether XLA multiplies and adds in one operation."""
    leaf = jax.random.normal(jax.random.key(1), (40, 30), dtype)

    def formed(key, std):
        members = members_of(key, std, leaf, kind)
        (deviation,) = members.deviation(members.drawn(jnp.int32(1)))
        return deviation

    def added(key, std):
        return leaf.astype(wide_dtype(dtype)) + formed(key, std)

    arguments = KEY_DATA, jnp.float32(0.37)
    in_two_programs = leaf.astype(wide_dtype(dtype)) + jax.jit(formed)(*arguments)
    np.testing.assert_array_equal(jax.jit(added)(*arguments), in_two_programs)


def test_a_product_of_rank_one_is_exact():
    leaf = jnp.ones((300, 200))  # of a small one no factors are held
    members = members_of(KEY_DATA, jnp.float32(0.37), leaf, noise.low_rank())
    parts = members.drawn(jnp.int32(1))
    product = np.multiply.outer(*(np.float64(factor[:, 0]) for factor in parts[0]))
    np.testing.assert_array_equal(product, product.astype(np.float32))
    np.testing.assert_array_equal(product, members.deviation(parts)[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_member_in_low_precision_is_rounded_by_an_operation_that_xla_keeps(dtype):
    """It may leave out a cast that another one undoes; not on CPU, so this reads the program."""
    leaf, deviation = jnp.ones((4, 3), dtype), jnp.ones((4, 3))
    digits = jnp.finfo(dtype).nmant
    assert f"mantissa_bits={digits}" in str(jax.make_jaxpr(plus)(leaf, deviation))
    wide = leaf.astype(jnp.float32)
    assert "reduce_precision" not in str(jax.make_jaxpr(plus)(wide, deviation))


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
