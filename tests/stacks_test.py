"""Small leaves are stacked and drawn by one program: the same bits, and fewer programs."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, evolve, noise, presets, recombine
from egd_optax.backend import packing
from egd_optax.backend.unpacking import unpack

# How leaves are laid out is nobody's interface: fewer pieces of program are the reason for it.
from egd_optax.core.perturbation import draw_rows
from xla_options import known

KINDS = {
    "gaussian": noise.gaussian(),
    "low rank": noise.low_rank(),
    "rank 3": noise.low_rank(rank=3),
}


def leaves_of(shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def moved(leaves, mutable, kind):
    """Where a cycle leads some leaves, of which only some mutate."""
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, population_size=3, sigma=0.3, noise=kind,
        mutable=list(mutable), accept=accept.always(), recombine=recombine.mean(1.0),
    )  # fmt: skip
    value_fn = lambda params: sum(jnp.sum(leaf) for leaf in params)  # noqa: E731
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn)[0])
    return step(leaves, tx.init(leaves), leaves)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_noise_of_a_leaf_does_not_depend_on_its_company(kind):
    """All weigh the same: a leaf moves by the mean of its noise, whatever mutates beside it."""
    leaves = leaves_of([(17, 31)] * 4 + [(5,)] * 6 + [(16, 4)] * 5)
    together = moved(leaves, [True] * len(leaves), kind)
    for first, last in ((0, 1), (1, 4), (3, 6), (4, 15)):
        mutable = [first <= at < last for at in range(len(leaves))]
        some = moved(leaves, mutable, kind)
        # The mean is a product over members, which XLA may round as suits its shape.
        chex.assert_trees_all_close(some[first:last], together[first:last], rtol=1e-5, atol=1e-7)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("is_cut", [False, True], ids=["stacked", "cut"])
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 4096])
def test_a_row_goes_on_where_the_one_before_it_ended(length, is_cut):
    leaves = [jnp.ones(length)] * 3
    layout = laid_out(leaves, is_cut)
    keys = jax.random.bits(jax.random.key(2), (3, 2), jnp.uint32)
    rows = draw_rows(layout, keys, jnp.int32(5))
    assert rows.size <= 3 * (length + packing.LENGTH)
    numbers = unpack(layout, [block.read(rows)[0] for block in layout.blocks], jnp.int32(0))
    for position in range(3):
        alone = laid_out(leaves[:1], is_cut=False)
        drawn = draw_rows(alone, keys[position][None], jnp.int32(5))
        (expected,) = alone.blocks[0].read(drawn)
        np.testing.assert_array_equal(numbers[position], expected[0])


@pytest.mark.parametrize("is_cut", [False, True], ids=["stacked", "cut"])
def test_a_block_has_leaves_of_one_kind_and_gives_them_back(is_cut):
    shapes = [(8, 8), (64,), (16, 4), (5, 7), (), (0, 3)] * 9 + [(packing.LARGEST + 1,)] * 2
    leaves = leaves_of(shapes) + leaves_of(shapes, jnp.bfloat16)
    layout = laid_out(leaves, is_cut)
    for block in layout.blocks:
        like = {(leaves[at].dtype, None if is_cut else leaves[at].shape) for at in block.leaves}
        assert len(like) == 1
        assert block.many == 1 or leaves[block.leaves[0]].size <= packing.LARGEST
    unpacked = unpack(layout, layout.stack(leaves), jnp.int32(0))
    chex.assert_trees_all_equal([unpacked[at] for at in range(len(leaves))], leaves)
    assert len(layout.blocks) < len(leaves) / 2


def laid_out(leaves, is_cut):
    return packing.lay_out(leaves, leaves, lambda leaf: (leaf.shape,), lambda leaf: is_cut)


def text_of(count, **kwargs):
    """The compiled step of a network of so many matrices."""

    def loss(params):
        hidden = jnp.ones((4, 16))
        for matrix in params:
            hidden = jnp.tanh(hidden @ matrix)
        return jnp.mean(jnp.cos(hidden))

    params = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * count
    tx = evolve(optax.sgd(0.1), **kwargs)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
    lowered = step.lower(params, jax.eval_shape(tx.init, params), params)
    return lowered.compile(known("read")).as_text()


SETTINGS = {
    "host": {},
    "device": {"execution": Execution(memory="device")},
    "replay": {"execution": Execution(memory="replay")},
    "low rank": {"noise": noise.low_rank()},
    "metric": presets.metric(),
    "generations": {"generations": 3},
    "batches": {"execution": Execution(candidate_batch_size=4)},
}


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("kwargs", SETTINGS.values(), ids=SETTINGS)
def test_the_generator_is_not_written_out_for_each_leaf(kwargs):
    """An exclusive or is a thing of the generator alone."""
    few, many = (text_of(count, **kwargs).count(" xor(") for count in (4, 24))
    assert 0 < many <= few


def different_pieces(text, of):
    """How many different fusions there are with some operation; equal ones are compiled once."""
    bodies = re.findall(r"^%\S+ \(.*?\) -> .*? \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    without_names = (re.sub(r", metadata=\{.*?\}|%[\w.-]+", "", body) for body in bodies)
    return len({body for body in without_names if f" {of}(" in body})


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("kwargs", [{}, SETTINGS["batches"]], ids=["host", "batches"])
def test_equal_layers_are_equal_pieces_of_program(kwargs):
    """Also those that use small leaves, which stand in stacks, at different places."""

    def loss(params):
        hidden = jnp.ones((4, 16))
        for matrix, bias in params:
            hidden = jnp.tanh(hidden @ matrix + bias)
        return jnp.mean(hidden**2)

    def pieces(layers):
        params = [(jnp.zeros((16, 16)), jnp.zeros(16))] * layers
        tx = evolve(optax.sgd(0.1), **kwargs)
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
        compiled = step.lower(params, tx.init(params), params).compile()
        return different_pieces(compiled.as_text(), "tanh")

    assert 0 < pieces(12) <= pieces(5)


@pytest.mark.crossed(2)
@pytest.mark.exact
@pytest.mark.parametrize("kwargs", SETTINGS.values(), ids=SETTINGS)
def test_the_program_holds_value_fn_once(kwargs):
    """Parent, members and child are evaluated in one place; under `vmap` there is one more."""
    cosines = len(re.findall(r" = \S+ cosine\(", text_of(3, **kwargs)))
    batches = "execution" in kwargs and kwargs["execution"].candidate_batch_size is not None
    assert cosines == 1 + batches


@pytest.mark.wide
@pytest.mark.exact
def test_a_guard_is_another_function():
    tx = evolve(optax.sgd(0.1), recombine=recombine.mean())
    params = [jnp.ones((4, 4))]
    functions = {
        "value_fn": lambda p: jnp.mean(jnp.cos(p[0])),
        "accept_value_fn": lambda p: jnp.mean(jnp.sin(p[0])),
    }
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, **functions))
    text = step.lower(params, tx.init(params), params).compile().as_text()
    assert len(re.findall(r" = \S+ cosine\(", text)) == 1
