"""Thousands of leaves: a leaf adds to a program about as much as to the base's, however many."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, evolve, noise, recombine
from xla_options import known

BASE = optax.with_extra_args_support(optax.adam(1e-3))
SETTINGS = {
    "default": {},
    "replay": {"execution": Execution(memory="replay")},
    "antithetic": {"antithetic": True},
    "low rank": {"noise": noise.low_rank(), "execution": Execution(evaluate="formed")},
}
# The shapes of so many leaves.
TREES = {
    "vectors": lambda count: [(8,)] * count,
    "different vectors": lambda count: [(8 + at,) for at in range(count)],
    "matrices": lambda count: [(64, 64)] * count,
    "different matrices": lambda count: [(20 + at // 9, 20 + at % 9) for at in range(count)],
    "layers": lambda count: [(64,), (64, 64), (64, 256), (256,), (256, 64)] * (count // 5),
}
CASES = [(tree, setting) for tree in TREES for setting in SETTINGS]
# Each matrix of another shape is another product of factors. It is traced and compiled by itself.
PRODUCTS = ("different matrices", "low rank")


def loss(params):
    return jnp.sum(jnp.stack([jnp.sum(jnp.tanh(leaf)) for leaf in params]))


@functools.cache
def traced(tree, setting, count):
    """The train step on a tree of so many leaves; that of the base without a setting."""
    tx = BASE if setting is None else evolve(BASE, **SETTINGS[setting])
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in TREES[tree](count)]

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step).trace(params, jax.eval_shape(tx.init, params))


def equations(program):
    """How many equations a program has, with those of the programs inside of it."""
    program = getattr(program, "jaxpr", program)
    params = [tuple(equation.params.values()) for equation in program.eqns]
    inside = [one for one in jax.tree.leaves(params, is_leaf=is_program) if is_program(one)]
    return len(program.eqns) + sum(map(equations, inside))


def is_program(param):
    return hasattr(param, "eqns") or hasattr(param, "jaxpr")


def pieces(tree, setting, count):
    """How many different fusions the compiled step has: XLA compiles equal ones once."""
    text = traced(tree, setting, count).lower().compile(known("read")).as_text()
    bodies = re.findall(r"^%\S+ \(.*?\) -> .*? \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return len({re.sub(r", metadata=\{.*?\}|%[\w.-]+", "", body) for body in bodies})


@pytest.mark.crossed(4)
@pytest.mark.parametrize(("tree", "setting"), CASES)
def test_a_leaf_adds_as_many_equations_as_the_one_before_it(tree, setting):
    def of_a_leaf(setting, count):
        more, fewer = (equations(traced(tree, setting, n).jaxpr) for n in (2 * count, count))
        return (more - fewer) / count

    assert of_a_leaf(setting, 80) <= 1.1 * of_a_leaf(setting, 20)
    most = 7 if (tree, setting) == PRODUCTS else 2.5
    assert 0 < of_a_leaf(setting, 80) <= most * of_a_leaf(None, 80)


@pytest.mark.crossed(3)
@pytest.mark.exact
@pytest.mark.parametrize(("tree", "setting"), CASES)
def test_a_leaf_adds_at_most_twice_the_pieces_that_it_adds_to_the_base(tree, setting):
    def of_twenty_leaves(setting):
        return pieces(tree, setting, 40) - pieces(tree, setting, 20)

    most = 3 if (tree, setting) == PRODUCTS else 2
    # Equal leaves add the places that they have in stacks, fewer and fewer.
    places = 0 if "different" in tree else 30
    assert of_twenty_leaves(setting) <= most * of_twenty_leaves(None) + places


class Stacked(noise.Noise):
    """The noise of `noise.gaussian`; of an own form, whose leaves are stacked and not cut."""

    def form(self, parts, leaf):
        return parts[0]


SHAPES = [(5,), (64,), (65,), (17, 3), (64, 64), (), (5,), (0,), (17, 3), (5,), (200, 200), (5,)]
KINDS = {
    "default": {},
    "generations": {"generations": 3, "accept": accept.always()},
    "pairs": {"antithetic": True, "generations": 2, "accept": accept.always()},
    "batches": {"execution": Execution(candidate_batch_size=4), "accept": accept.always()},
    "Adam": {
        "es_optimizer": optax.adam(1e-2),
        "recombine": recombine.centered_rank(),
        "accept": accept.always(),
    },
}


def leaves_of(dtype):
    return [jax.random.normal(jax.random.key(at), shape, dtype) for at, shape in enumerate(SHAPES)]


@pytest.mark.crossed(3)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_that_are_cut_into_rows_move_like_those_in_stacks(kind, dtype):
    """Also in a second generation, when the rest of a last row holds noise."""

    def distance(params):
        return sum(jnp.sum(jnp.abs(leaf - 0.3).astype(jnp.float32) ** 2) for leaf in params)

    def moved(noise):
        tx = evolve(optax.sgd(1e-3), evolve_every=1, sigma=0.1, noise=noise, **KINDS[kind])
        step = jax.jit(lambda grads, state: tx.update(grads, state, leaves, value_fn=distance))
        leaves = leaves_of(dtype)
        grads = jax.tree.map(jnp.conj, jax.grad(distance)(leaves))
        updates, state = step(grads, tx.init(leaves))
        return optax.apply_updates(leaves, updates), state.info

    (cut, info), (stacked, expected) = moved(noise.gaussian()), moved(Stacked())
    chex.assert_trees_all_close(info, expected, rtol=1e-6)
    # A unit in the last place of a standard deviation, and what Adam makes of it.
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    chex.assert_trees_all_close(cut, stacked, rtol=tolerance, atol=tolerance)


@pytest.mark.exact
@pytest.mark.on_cpu  # JAX passes no ordered effect through a program that uses host memory
def test_a_member_is_the_same_to_the_bit_whatever_mutates_beside_it():
    def seen(mutating):
        members = []

        def value_fn(params):
            jax.debug.callback(lambda *leaves: members.append(leaves), *params, ordered=True)
            return 0 * jnp.sum(params[0])

        mutable = [at in mutating for at in range(len(SHAPES))]
        tx = evolve(
            optax.identity(), evolve_every=1, population_size=3, mutable=mutable, sigma=0.3,
            accept=accept.improved(),
        )  # fmt: skip
        leaves = leaves_of(jnp.float32)
        jax.block_until_ready(
            jax.jit(lambda leaves, state: tx.update(leaves, state, leaves, value_fn=value_fn))(
                leaves, tx.init(leaves)
            )
        )
        jax.effects_barrier()
        return members

    together = seen(range(len(SHAPES)))
    for mutating in ([0], [2], [4], [5], [3, 8], [0, 6, 9, 11]):
        for member, expected in zip(seen(mutating), together, strict=True):
            for at in mutating:
                np.testing.assert_array_equal(member[at], expected[at])


@pytest.mark.parametrize("kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low_rank"])
def test_equal_leaves_on_manual_devices_move_as_on_one(kind):
    """JAX tracks which values differ between the devices, also those that leaves are written in."""
    leaves = [jnp.ones((4, 6))] * 4 + [jnp.ones(6)] * 5
    distance = lambda params: sum(jnp.sum((leaf - 0.3) ** 2) for leaf in params)  # noqa: E731

    def moved(wrap, **kwargs):
        tx = evolve(
            optax.sgd(0.01), evolve_every=1, population_size=16, sigma=0.2, noise=kind, **kwargs
        )

        def step(leaves):
            grads = jax.grad(distance)(leaves)
            updates, _ = tx.update(grads, tx.init(leaves), leaves, value_fn=distance)
            return optax.apply_updates(leaves, updates)

        return jax.jit(wrap(step))(leaves)

    mesh = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec()
    found = moved(
        functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec,), out_specs=spec),
        execution=Execution(population_axis="pop"),
    )
    chex.assert_trees_all_close(found, moved(lambda step: step), atol=2e-5)
