"""Bases whose state holds a point of the run: a jump moves it along, and is not taken back."""

import chex
import jax
import jax.numpy as jnp
import optax
from optax import contrib
import pytest

from egd_optax import accept, evolve

PARAMS = {"w": jnp.asarray([[1.25, -2.5], [3.5, 0.75]]), "b": jnp.ones(3)}
# What optax has whose state has a leaf that starts as the parameters, and stays.
ANCHORED = {
    "cocob": lambda: contrib.cocob(),
    "dog": lambda: contrib.dog(),
    "dowg": lambda: contrib.dowg(),
    "madgrad": lambda: contrib.madgrad(0.1),
    "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
    "mechanize adam": lambda: contrib.mechanize(optax.adam(0.1)),
    "prodigy": lambda: contrib.prodigy(),
    "distance": lambda: optax.chain(
        optax.scale_by_distance_over_gradients(), optax.scale_by_learning_rate(0.1)
    ),
    "in a chain": lambda: optax.chain(optax.clip(10.0), contrib.cocob()),
    "masked": lambda: optax.masked(contrib.cocob(), {"w": True, "b": False}),
    "partition": lambda: optax.partition(
        {"one": optax.sgd(0.1), "other": contrib.madgrad(0.1)}, {"b": "one", "w": "other"}
    ),
    "with hyperparameters": lambda: optax.inject_hyperparams(contrib.madgrad)(0.1),
}
# Its second iterate starts as the parameters too, but moves: it belongs to the base.
ITERATES = ("schedule_free", "schedule_free_adamw", "schedule_free_sgd")


def loss(params):
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def gradient(step):
    """The same wherever the parameters are."""
    return jax.tree.map(lambda leaf: jnp.cos(step + leaf), PARAMS)


def run(tx, steps, jump_at, jit, **extra):
    """The updates of each step; a cycle runs on one of them."""
    update = tx.update if not extra else lambda *args, **kw: tx.update(*args, **extra, **kw)
    step = jax.jit(update, static_argnames="evolve") if jit and extra else update
    params, state, all_updates = PARAMS, tx.init(PARAMS), []
    for n in range(steps):
        kwargs = {"evolve": n == jump_at} if extra else {}
        updates, state = step(gradient(n), state, params, **kwargs)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates, state


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("base", ANCHORED)
def test_the_next_updates_are_those_without_a_jump(base, jit):
    """They do not care where a run started: after a jump it is one that started elsewhere."""
    tx = evolve(ANCHORED[base](), sigma=0.3, accept=accept.always())
    value_fn = jax.tree_util.Partial(loss)
    found, state = run(tx, 7, 3, jit, value_fn=value_fn)
    expected, _ = run(ANCHORED[base](), 7, None, jit)
    assert state.info.accepted
    jump = jax.tree.map(lambda one, other: jnp.abs(one - other).max(), found[3], expected[3])
    assert jump["w"] > 1e-2
    for step in (0, 1, 2, 4, 5, 6):
        chex.assert_trees_all_close(found[step], expected[step], rtol=1e-3, atol=1e-5)


def test_a_reset_base_starts_anew_where_it_is():
    """Sums and the point that they are counted from, together."""
    tx = evolve(contrib.cocob(), sigma=0.3, accept=accept.always(), reset_base=True)
    params, state = PARAMS, tx.init(PARAMS)
    for n in range(4):
        updates, state = tx.update(gradient(n), state, params, value_fn=loss, evolve=n == 3)
        params = optax.apply_updates(params, updates)
    fresh = contrib.cocob().init(params)
    chex.assert_trees_all_close(state.base_state, fresh, rtol=1e-6)


def made(name, module):
    """An optimizer of optax, with what its arguments need; None if that is not known."""
    for args in ((), (0.1,), (optax.sgd(0.1),), (optax.sgd(0.1), 0.1)):
        try:
            tx = getattr(module, name)(*args)
            return tx if hasattr(tx, "init") else None
        except Exception:  # another guess
            continue
    return None


@pytest.mark.filterwarnings("ignore")
def test_no_other_optimizer_of_optax_starts_from_the_parameters():
    starts = set()
    for module in (optax, contrib):
        for name in dir(module):
            tx = None if name.startswith("_") else made(name, module)
            try:
                state = None if tx is None else tx.init(PARAMS)
            except Exception:  # it needs other parameters
                continue
            leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.shape(leaf) == (2, 2)]
            if any((leaf == PARAMS["w"]).all() for leaf in leaves):
                starts.add(name.removeprefix("scale_by_"))
    tested = {*ANCHORED, *ITERATES, "distance_over_gradients"}
    assert starts <= tested, starts - tested
    assert len(starts) > 8
