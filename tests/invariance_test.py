"""The same key gives the same bits, however the cycle is stored, compiled or split up."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from egd_optax import Execution, accept, egd, evolve, noise, recombine
from egd_optax.base.leaves import mutating_leaves

MEMORY = ("host", "device", "replay")


def mlp_params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(5), 2)
    return {
        "w0": (jax.random.normal(keys[0], (12, 32)) / 4).astype(dtype),
        "b0": jnp.zeros((32,), dtype),
        "w1": (jax.random.normal(keys[1], (32, 3)) / 6).astype(dtype),
    }


INPUTS = jax.random.normal(jax.random.key(8), (20, 12))
TARGETS = jax.random.normal(jax.random.key(9), (20, 3))


def mlp_loss(params):
    hidden = jnp.tanh(INPUTS.astype(params["w0"].dtype) @ params["w0"] + params["b0"])
    return jnp.mean(((hidden @ params["w1"]).astype(jnp.float32) - TARGETS) ** 2)


def train(tx, params, steps=6, value_fn=mlp_loss, jit=True):
    def step(params, state):
        updates, state = tx.update(params, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    # Committed, so that a program with host memory is compiled once.
    params, state = jax.device_put((params, tx.init(params)), jax.devices()[0])
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.crossed(1)
@pytest.mark.exact
@pytest.mark.parametrize(
    ("dtype", "batch_size", "kwargs"),
    [
        (jnp.float32, 1, {"recombine": recombine.mean(0.5), "accept": accept.always()}),
        (jnp.float32, 3, {"recombine": recombine.softmax(0.01, 0.5)}),
        (jnp.float32, 1, {"recombine": recombine.mean(0.1), "noise": noise.low_rank()}),
        (
            jnp.bfloat16,
            1,
            {
                "recombine": recombine.softmax(0.01, 0.5),
                "noise": noise.low_rank(rank=3),
                "accept": accept.always(),
            },
        ),
        (jnp.bfloat16, 7, {"recombine": recombine.mean(0.5)}),
    ],
    ids=[
        "mean, always",
        "softmax, in batches of 3",
        "mean of the best, low rank",
        "bfloat16, softmax, rank 3, always",
        "bfloat16, mean, in a batch of 7",
    ],
)
def test_memory_modes_agree_to_the_bit(dtype, batch_size, kwargs):
    def run(memory):
        tx = egd(
            0.05,
            momentum=0.9,
            evolve_every=2,
            population_size=7,
            sigma=0.2,
            reset_base=True,
            execution=Execution(memory=memory, candidate_batch_size=batch_size),
            **kwargs,
        )
        return train(tx, mlp_params(dtype))

    runs = [run(memory) for memory in MEMORY]
    assert bool(runs[0][1].info.accepted)
    chex.assert_trees_all_equal(*runs)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("memory", ["host", "replay"])
def test_jit_eager_and_scan_agree_to_the_bit(memory):
    # A power of two as the rate: products with it are exact, so optax's own step
    # rounds alike in all three, and what is compared is the cycle.
    execution = Execution(memory=memory)
    tx = egd(0.125, evolve_every=2, sigma=0.1, accept=accept.always(), execution=execution)
    params = mlp_params()
    jitted = train(tx, params, steps=2)
    eager = train(tx, params, steps=2, jit=False)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params, value_fn=mlp_loss)
        return (optax.apply_updates(params, updates), state), None

    scanned, _ = jax.lax.scan(body, (params, tx.init(params)), length=2)
    chex.assert_trees_all_equal(jitted, eager)
    chex.assert_trees_all_equal(jitted, scanned)


@pytest.mark.wide
def test_runs_repeat_and_keys_differ():
    def run(key):
        return train(egd(0.1, evolve_every=3, key=key, accept=accept.always()), mlp_params())[0]

    seeded = run(1)
    chex.assert_trees_all_equal(seeded, run(1))
    chex.assert_trees_all_equal(seeded, run(jax.random.key(1)))
    chex.assert_trees_all_equal(seeded, run(jax.random.PRNGKey(1)))
    for leaf, other in zip(jax.tree.leaves(seeded), jax.tree.leaves(run(2)), strict=True):
        assert (leaf != other).any()


def test_two_cycles_share_no_noise():
    params = jnp.zeros(4000)
    tx = egd(
        0.0, evolve_every=1, sigma=1.0, noise=noise.gaussian(relative=False),
        accept=accept.always(), population_size=2, recombine=recombine.mean(1.0),
    )  # fmt: skip
    # Every child is half the one mutant's noise further on.
    update = jax.jit(lambda s, p: tx.update(params, s, p, value_fn=jnp.sum))
    state, noises = tx.init(params), []
    for _ in range(4):
        updates, state = update(state, params)
        noises.append(2 * updates)
    correlation = jnp.corrcoef(jnp.stack(noises)) - jnp.eye(4)
    assert jnp.abs(correlation).max() < 5 / jnp.sqrt(params.size)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize(("memory", "batch_size"), [("host", 4), ("device", 8), ("replay", 2)])
def test_members_evaluated_together_give_the_same_elites(memory, batch_size):
    def run(batch_size):
        tx = egd(
            0.05,
            evolve_every=1,
            accept=accept.always(),
            sigma=0.2,
            execution=Execution(memory=memory, candidate_batch_size=batch_size),
        )
        return train(tx, mlp_params(), steps=1)

    one, many = run(1), run(batch_size)
    chex.assert_trees_all_equal(one[0], many[0])  # the mean of the same elites
    chex.assert_trees_all_close(one[1].info, many[1].info, rtol=1e-5)


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("memory", ["host", "replay"])
def test_the_noise_of_a_leaf_does_not_depend_on_mutable(memory):
    def child(mutable):
        tx = evolve(
            optax.sgd(0.0),
            evolve_every=1,
            mutable=mutable,
            accept=accept.always(),
            recombine=recombine.mean(1.0),
            execution=Execution(memory=memory),
        )
        return train(tx, mlp_params(), steps=1)[0]

    params, everything = mlp_params(), child(None)
    some = child({"w0": False, "b0": True, "w1": True})
    chex.assert_trees_all_equal(some["w0"], params["w0"])
    chex.assert_trees_all_equal(some["b0"], everything["b0"])
    chex.assert_trees_all_equal(some["w1"], everything["w1"])


def test_mutable_may_be_a_function_of_the_parameters():
    params, mask = mlp_params(), {"w0": False, "b0": True, "w1": True}
    by_shape = lambda params: jax.tree.map(lambda leaf: leaf.shape != (12, 32), params)  # noqa: E731
    expected = mutating_leaves(params, mask)
    assert expected == mutating_leaves(params, lambda params: mask)
    assert expected == mutating_leaves(params, by_shape) == (0, 2)


@pytest.mark.wide
def test_masking_a_leaf_does_not_change_the_noise_of_the_others():
    mask = {"w0": False, "b0": True, "w1": True}
    kwargs = {"evolve_every": 1, "accept": accept.always(), "recombine": recombine.mean(1.0)}
    value_fn = lambda params: jnp.sum(params["w1"] ** 2)  # noqa: E731
    whole = train(evolve(optax.sgd(0.0), **kwargs), mlp_params(), 1, value_fn)[0]
    tx = optax.masked(evolve(optax.sgd(0.0), **kwargs), mask)
    masked, _ = tx.update(mlp_params(), tx.init(mlp_params()), mlp_params(), value_fn=value_fn)
    moved = optax.apply_updates(mlp_params(), masked)
    chex.assert_trees_all_close(moved["w1"], whole["w1"], rtol=1e-6)
    chex.assert_trees_all_close(moved["b0"], whole["b0"], rtol=1e-6)


def test_a_prefix_of_mutable_covers_its_subtree():
    params = {"frozen": {"a": jnp.ones(3), "b": jnp.ones(3)}, "free": [jnp.ones(3), jnp.ones(3)]}
    tx = evolve(
        optax.sgd(0.0),
        evolve_every=1,
        mutable={"frozen": False, "free": True},
        accept=accept.always(),
    )
    moved, _ = train(tx, params, 1, lambda p: jnp.sum(p["free"][0]))
    chex.assert_trees_all_equal(moved["frozen"], params["frozen"])
    for leaf in moved["free"]:
        assert (leaf != 1).all()
