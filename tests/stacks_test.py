"""Small leaves stand in stacks and are drawn by one program: the same bits, and fewer programs."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, evolve, noise, presets, recombine
from egd_optax._cycle import numbers, parts, threefry
from egd_optax._cycle.draws import draws_of
from egd_optax._cycle.members import Members, noise_std
from egd_optax._cycle.parent import Genome
from egd_optax._cycle.stacks import LARGEST, stacks_of
from xla_options import known

KINDS = {
    "gaussian": noise.gaussian(),
    "low rank": noise.low_rank(),
    "rank 3": noise.low_rank(rank=3),
}
SHAPES = [
    (),
    (1,),
    (5,),
    (8, 8),
    (4, 2, 8),
    (8, 8),
    (64,),
    (17, 31),
    (8, 8),
    (300,),
    (1, 7),
    (0, 3),
]
KEY = threefry.wrap_key_data(jnp.array([7, 2**31 + 9], jnp.uint32))


def leaves_of(shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def unstacked(stacks, entries):
    buffers = {
        at: entry for entry, group in zip(entries, stacks.groups, strict=True) for at in group
    }
    buffers = [jnp.zeros(shape, buffers[at].dtype) for at, shape in enumerate(stacks.shapes)]
    leaves = stacks.alone(entries) | stacks.taken_out(entries, buffers, jnp.bool_(True))
    return tuple(leaves[at] for at in range(len(leaves)))


def noise_of_all(kind, leaves, first=0, member=3, sigma=0.3, compiler_options=None):
    """The noise of a member, leaf by leaf, in parameters that have some leaves in front."""
    stacks = stacks_of(leaves, leaves, kind._view)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def noises(leaves):
        genome = tuple(
            stacks.stack([leaves[at] for at in group], entry)
            if len(group) > 1
            else stacks.viewed(leaves[group[0]], entry)
            for entry, group in enumerate(stacks.groups)
        )
        stds = stacks.one_by_one(lambda leaf: noise_std(leaf, jnp.float32(sigma), kind), genome)
        positions = tuple(range(first, first + len(leaves)))
        key_data = jax.random.key_data(KEY)
        parent = Genome(genome, None, (None,) * len(genome))
        members = Members(parent, stacks, positions, key_data, 0, stds, 8, False, kind)
        return unstacked(stacks, members.deviation(members.drawn(jnp.int32(member))))

    return stacks, noises(leaves)


def noise_of_one(kind, leaf, at, member=3, sigma=0.3):
    """The noise of a leaf, as `jax.random` and `Noise.draw` make it in a program of its own."""

    @functools.partial(jax.jit, compiler_options=known("hurried"))
    def one(leaf):
        key = jax.random.fold_in(jax.random.fold_in(KEY, member), at)
        std = noise_std(leaf, jnp.float32(sigma), kind)
        return parts.form(kind, parts.draw(kind, key, std, leaf), leaf)

    return one(leaf)


@pytest.mark.wide
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_leaf_has_the_noise_that_it_draws_by_itself(kind, dtype):
    leaves = leaves_of([*SHAPES, (200, 180)], dtype)
    stacks, together = noise_of_all(kind, leaves, compiler_options=known("hurried"))
    assert max(map(len, stacks.groups)) > 1
    for at, (leaf, found) in enumerate(zip(leaves, together, strict=True)):
        # Factors are rounded to half of their digits.
        np.testing.assert_allclose(found, noise_of_one(kind, leaf, at), rtol=1e-3, atol=1e-7)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_noise_of_a_leaf_does_not_depend_on_what_it_stands_beside(kind):
    leaves = leaves_of([(17, 31)] * 9 + [(5,)] * 20 + [(16, 4)] * 64)
    _, all_of_them = noise_of_all(kind, leaves)
    for first, last in ((0, 1), (5, 11), (28, 30), (9, 93)):
        _, some = noise_of_all(kind, leaves[first:last], first)
        chex.assert_trees_all_equal(some, all_of_them[first:last])


@pytest.mark.wide
def test_in_float64_too():
    with jax.enable_x64(True):
        leaves = leaves_of(SHAPES) + leaves_of(SHAPES, jnp.float64)
        _, together = noise_of_all(noise.gaussian(), leaves, compiler_options=known("hurried"))
        for at, (leaf, found) in enumerate(zip(leaves, together, strict=True)):
            assert found.dtype == leaf.dtype
            expected = noise_of_one(noise.gaussian(), leaf, at)
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("length", [1, 5, 8, 9, 255, 4096])
def test_a_row_goes_on_where_the_one_before_it_ended(length):
    runs = [numbers.Run(leaf, noise.Normal((length,))) for leaf in (1, 0, 1)]
    rows = numbers.Rows(tuple(runs), jnp.dtype(jnp.float32))
    keys = jax.random.key_data(jax.random.split(KEY, 2))
    drawn = rows.draw(keys, jnp.ones(2))
    assert drawn.size <= 3 * (length + numbers.LENGTH)
    for run, leaf in enumerate((1, 0, 1)):
        key = threefry.wrap_key_data(keys[leaf])
        expected = parts.draw(noise.gaussian(), key, jnp.float32(1), jnp.ones(length))
        np.testing.assert_allclose(rows.read(drawn, run, 1)[0], expected, rtol=1e-6)


def test_a_stack_has_leaves_of_one_size_and_kind_and_gives_them_back():
    shapes = [(8, 8), (64,), (16, 4)] * 5 + [(LARGEST + 1,)] * 2
    leaves = leaves_of(shapes) + leaves_of(shapes, jnp.bfloat16)
    stacks = stacks_of(leaves, leaves, noise.gaussian()._view)
    for group in stacks.groups:
        assert len({(leaves[at].size, leaves[at].dtype) for at in group}) == 1
        assert len(group) == 1 or leaves[group[0]].size <= LARGEST
    assert sorted(stacks.order) == list(range(len(leaves)))
    genome = tuple(
        stacks.stack([leaves[at] for at in group], entry) if len(group) > 1 else leaves[group[0]]
        for entry, group in enumerate(stacks.groups)
    )
    chex.assert_trees_all_equal(unstacked(stacks, genome), tuple(leaves))
    assert len(stacks.groups) < len(leaves) / 2


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


def test_draws_are_decided_by_shapes_alone():
    leaves = leaves_of([(8, 8), (200, 200)])
    stacks = stacks_of(leaves, leaves, noise.low_rank()._view)
    genome = tuple(stacks.viewed(leaf, at) for at, leaf in enumerate(leaves))
    formed, factored = (
        draws_of(noise.low_rank(), stacks, (0, 1), genome, None, (on, on)) for on in (False, True)
    )
    assert formed.small == (True, False)
    assert factored.small == (False, False)
    again = draws_of(noise.low_rank(), stacks, (0, 1), genome, None, (True, True))
    assert hash(factored) == hash(again)
