"""Members that are not formed, in programs compiled for a TPU and for a GPU that are not here."""

import functools
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax
import pytest

from aot.compiled import PLUGINS, missing, topology
from egd_optax import Execution, accept, evolve, noise
from egd_optax.factored.interpret import evaluate
from egd_optax.factored.leaf import Factored
from xla_options import known

# No other array of a program has as many numbers as a batch has in a layer.
WIDTH, LAYERS, ROWS, AT_ONCE = 1024, 3, 48, 16


@pytest.fixture(params=PLUGINS)
def target(request):
    if reason := missing(request.param):
        pytest.skip(f"NOT CHECKED for {request.param}: {reason}")
    return request.param


def loss(params, x):
    for layer in params:
        x = jnp.tanh(x @ layer)
    return jnp.mean(x**2)


def lowered(target, fn, *args):
    mesh = Mesh(topology(target).devices[:1], ("x",))
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)  # noqa: E731
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*jax.tree.map(place, args))


def compiled(target, program):
    return program.compile(known("untuned") if target == "H100" else None)


def operations(target, fn, *args):
    """What XLA counts; for a GPU, for which it does not, in the program for this machine."""
    if target == "H100":
        return jax.jit(fn).lower(*args).cost_analysis()["flops"]
    return compiled(target, lowered(target, fn, *args)).cost_analysis()["flops"]


def params_and_data():
    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS
    return params, jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)


@functools.cache
def cycle(target, population):
    """A step with a cycle around a base that does nothing."""
    tx = evolve(
        optax.identity(), evolve_every=1, noise=noise.low_rank(), antithetic=True,
        population_size=population, accept=accept.always(),
        execution=Execution(evaluate="factored", candidate_batch_size=AT_ONCE),
    )  # fmt: skip
    params, x = params_and_data()
    state = jax.eval_shape(tx.init, params)

    def step(params, state, x):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, state, params, value_fn=lambda params: loss(params, x))

    return compiled(target, lowered(target, step, params, state, x))


def test_memory_is_flat_in_the_population(target):
    def held(population):
        taken = cycle(target, population).memory_analysis().temp_size_in_bytes
        return taken / (LAYERS * WIDTH**2 * 4)

    # Few draws are summed at once, and nothing is added to that: on a TPU it takes no memory.
    few = 1024 if target == "TPU v5e" else 256
    # A fitness and a weight for each of the others.
    assert held(4 * few) - held(few) < 0.1
    # The sum so far, and what is added to it, also where those are the fewest.
    assert held(512) < 2.1


def test_a_batch_shares_one_product_with_each_base(target):
    text = cycle(target, 128).as_text()
    # A convolution on a TPU; on a GPU a call of a library, or a fusion of Triton.
    called = r"= f32\[([\d,]+)\]\S* (?:convolution|custom-call|dot)\("
    fused = r"= f32\[([\d,]+)\]\S* fusion\([^\n]*kind=kCustom"
    found = re.findall(called, text) + re.findall(fused if target == "H100" else "$^", text)
    sizes = [math.prod(map(int, sides.split(","))) for sides in found]
    # Within a fusion of Triton its product stands once more.
    twice = 2 if target == "H100" else 1
    assert sizes.count(AT_ONCE * ROWS * WIDTH) == twice * (LAYERS - 1)  # the first is for all
    assert not re.search(rf"\[{AT_ONCE},{WIDTH},{WIDTH}\]", text)  # no member is formed


def test_operations_are_those_of_plain_forward_passes(target):
    params, x = params_and_data()
    side = jax.ShapeDtypeStruct((AT_ONCE, WIDTH, 1, 1), jnp.float32)
    other = jax.ShapeDtypeStruct((AT_ONCE, 1, WIDTH, 1), jnp.float32)

    def factored(params, lefts, rights, x):
        def one(lefts, rights):
            return evaluate(lambda p: loss(p, x), list(map(Factored, params, lefts, rights)))

        return jax.vmap(one)(lefts, rights)

    def plain(params, xs):
        return jax.vmap(lambda x: loss(params, x))(xs)

    xs = jax.ShapeDtypeStruct((AT_ONCE, ROWS, WIDTH), jnp.float32)
    ours = operations(target, factored, params, [side] * LAYERS, [other] * LAYERS, x)
    assert ours < 1.1 * operations(target, plain, params, xs)
