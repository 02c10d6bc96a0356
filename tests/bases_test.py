"""Whatever the base is: it gets what it takes, keeps what it learned, freezes what it freezes."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from egd_optax import Execution, accept, evolve, presets, recombine

START = jnp.linspace(1.0, 2.0, 12)


def loss(params):
    return jnp.mean((jnp.sin(3 * params) + params**2) ** 2)


def backtracking():
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15, store_grad=True)
    return optax.chain(optax.sgd(0.1), search)


def sam():
    outer, adversary = optax.sgd(1e-2), optax.chain(contrib.normalize(), optax.sgd(0.05))
    return contrib.sam(outer, adversary)


SEARCHES = {"lbfgs": optax.lbfgs, "backtracking": backtracking}


def searching_step(tx, **extra):
    """A step that takes value and gradient from the state where it can, and the value it used."""
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, **extra)
        return optax.apply_updates(params, updates), state, value

    return step


# What a base is given.


@pytest.mark.wide
@pytest.mark.parametrize("evolve_now", [None, True, False])
@pytest.mark.parametrize("make", [*SEARCHES.values(), sam], ids=[*SEARCHES, "sam"])
def test_a_base_that_takes_no_unknown_arguments_gets_none(make, evolve_now):
    tx, params = evolve(make(), evolve_every=2, sigma=0.1), START
    state = tx.init(params)
    for _ in range(4):
        value, grad = jax.value_and_grad(loss)(params)
        extra = {} if make is sam else {"value": value, "grad": grad}
        updates, state = tx.update(
            grad, state, params, value_fn=loss, accept_value_fn=loss, evolve=evolve_now, **extra
        )
        params = optax.apply_updates(params, updates)
    assert int(state.cycle) == {None: 2, True: 4, False: 0}[evolve_now]
    assert loss(params) < loss(START)


@pytest.mark.wide
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_steps_without_a_cycle_are_those_of_a_line_search_alone(make):
    alone = searching_step(make(), value_fn=loss)
    around = searching_step(evolve(make(), evolve_every=100), value_fn=loss)
    params, state = START, make().init(START)
    ours, own_state = START, evolve(make()).init(START)
    for _ in range(3):
        params, state, _ = alone(params, state)
        ours, own_state, _ = around(ours, own_state)
    chex.assert_trees_all_close(ours, params, rtol=1e-5)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_a_line_search_may_have_an_objective_of_its_own(make):
    """Along the gradient of a loss, a line search on that loss after rounding can climb."""

    def metric(params, scale):
        return jnp.round(loss(params) * scale)

    extra = {"value_fn": metric, "base_value_fn": loss, "scale": 2.0}
    alone = searching_step(make(), value_fn=loss)(START, make().init(START))
    tx = evolve(make(), evolve_every=100)
    around = searching_step(tx, **extra)(START, tx.init(START))
    chex.assert_trees_all_close(around[0], alone[0], rtol=1e-6)


@pytest.mark.wide
def test_the_objective_of_a_line_search_may_name_what_the_library_adds():
    def value_fn(params, generation, base_state, *, batch):
        del base_state
        return loss(params) + 0.0 * generation + 0.0 * batch

    tx = evolve(optax.lbfgs(), evolve_every=2)
    extra = {"value_fn": value_fn, "batch": jnp.float32(1.0)}
    params, state, _ = searching_step(tx, **extra)(START, tx.init(START))
    assert loss(params) < loss(START)
    params, state, _ = searching_step(tx, **extra)(params, state)
    assert int(state.cycle) == 1


@pytest.mark.wide
def test_an_evolve_inside_of_a_base_gets_all_that_is_its_own():
    inner = optax.chain(optax.clip(1.0), evolve(optax.sgd(0.1), evolve_every=1))
    tx = evolve(inner, evolve_every=1)
    extra = {"value_fn": loss, "accept_value_fn": loss, "base_value_fn": loss}
    for evolve_now, cycles in ((False, 0), (True, 1)):
        _, state = tx.update(START, tx.init(START), START, evolve=evolve_now, **extra)
        assert int(state.base_state[1].cycle) == cycles


# What a base keeps of a point.


@pytest.mark.wide
@pytest.mark.parametrize("reset_base", [False, True])
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_what_a_base_caches_for_a_point_is_not_used_after_a_jump(make, reset_base):
    tx = evolve(make(), evolve_every=3, sigma=0.3, accept=accept.always(), reset_base=reset_base)
    step, params, state = searching_step(tx, value_fn=loss), START, tx.init(START)
    jumps = 0
    for at in range(7):
        true_value = loss(params)
        params, state, used = step(params, state)
        np.testing.assert_allclose(used, true_value, rtol=1e-5)
        jumped = at % 3 == 2 and bool(state.info.accepted)
        # Known but after a jump, so that nothing is evaluated in vain.
        assert bool(jnp.isinf(optax.tree.get(state.base_state, "value"))) == jumped
        jumps += jumped
    assert jumps


# What is reset.


class Looks(NamedTuple):
    count: jax.Array
    momentum: jax.Array


def looking_into_parameters():
    """A base whose `init` takes no placeholder in place of the parameters."""

    def init(params):
        return Looks(jnp.zeros([], jnp.int32), jnp.zeros(params.shape[0]))

    def update(updates, state, params=None):
        del params
        momentum = 0.9 * state.momentum + updates
        return -0.1 * momentum, Looks(state.count + 1, momentum)

    return optax.GradientTransformation(init, update)


MOMENTS = {
    "adam": (lambda: optax.adam(0.1), {"mu", "nu", "count"}),
    "adan": (lambda: optax.adan(0.1), {"m", "v", "n", "g", "t"}),
    "momentum": (lambda: optax.sgd(lambda step: 0.1 / (1 + step), 0.9), {"trace"}),
    "optimistic": (
        lambda: optax.optimistic_gradient_descent(0.1),
        {"is_initial_step", "previous_gradient"},
    ),
    "plateau": (
        lambda: optax.chain(optax.sgd(0.1, 0.9), contrib.reduce_on_plateau(factor=0.5, patience=1)),
        {"trace"},
    ),
    "accumulation": (
        lambda: optax.MultiSteps(
            optax.sgd(0.1), every_k_schedule=lambda step: 1 + step // 2
        ).gradient_transformation(),
        {"acc_grads"},
    ),
    "conditional": (
        lambda: optax.conditionally_transform(optax.adam(0.1), lambda step: step < 9),
        {"mu", "nu", "count"},
    ),
    "injected": (
        lambda: optax.inject_hyperparams(optax.sgd)(lambda step: 0.1 / (1 + step), momentum=0.9),
        {"trace"},
    ),
    "noisy": (lambda: optax.noisy_sgd(0.1, eta=1e-3, key=0), set()),
    "schedule_free": (lambda: contrib.schedule_free_sgd(0.1, warmup_steps=100), set()),
    "prodigy": (
        lambda: contrib.prodigy(),
        {"exp_avg", "exp_avg_sq", "grad_sum", "params0", "count"},
    ),
    "evolve": (lambda: evolve(optax.sgd(0.1, 0.9), evolve_every=1, key=1), {"trace"}),
    "looking": (looking_into_parameters, {"count", "momentum"}),
}


def names_of(path):
    return {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}


@pytest.mark.wide
@pytest.mark.parametrize("base", MOMENTS)
def test_moments_start_anew_and_all_else_goes_on(base):
    """Schedules, counters, keys, learned scales, cycles of an `evolve` inside."""
    make, moments = MOMENTS[base]

    def state_after(reset_base):
        tx = evolve(
            make(), evolve_every=3, accept=accept.always(), sigma=0.1, reset_base=reset_base
        )
        params, state = START, tx.init(START)
        step = jax.jit(
            lambda params, state: tx.update(
                jax.grad(loss)(params), state, params, value_fn=loss, value=loss(params)
            )
        )
        for _ in range(3):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        assert bool(state.info.accepted)
        return state.base_state, params

    (new, params), (kept, _) = state_after(True), state_after(False)
    fresh = make().init(params)

    def check(path, new, kept, fresh):
        # The last name on a path: `count` of a schedule stands in no state with moments.
        is_moment = path and getattr(path[-1], "name", None) in moments
        if base in ("adam", "conditional") and "count" in names_of(path):
            is_moment = bool(path[:-1])
        chex.assert_trees_all_equal(new, fresh if is_moment else kept)
        return is_moment

    found = jax.tree_util.tree_map_with_path(check, new, kept, fresh)
    assert any(jax.tree.leaves(found)) == bool(moments)


def test_a_function_decides_what_is_reset():
    def forget_half(old, fresh):
        return jax.tree.map(lambda old, new: (old + new) / 2 if old.ndim else old, old, fresh)

    def state_after(reset_base):
        tx = evolve(
            optax.sgd(0.1, 0.9), evolve_every=1, accept=accept.always(), reset_base=reset_base
        )
        step = jax.jit(lambda p, s: tx.update(jnp.ones(12), s, p, value_fn=loss))
        return step(START, tx.init(START))[1].base_state[0].trace

    chex.assert_trees_all_close(state_after(forget_half), 0.5 * state_after(False))
    with pytest.raises(ValueError, match="`reset_base` must return a state of the same structure"):
        state_after(lambda old, fresh: ())


# What is frozen.

PAIR = {"w": jnp.ones(3), "b": jnp.ones(3)}
LABELS = {"w": "train", "b": "frozen"}


def partitioned():
    return optax.partition({"train": optax.adam(1e-2), "frozen": optax.set_to_zero()}, LABELS)


FREEZING = {
    "partition": partitioned,
    "freeze": lambda: optax.chain(optax.adam(1e-2), optax.freeze({"w": False, "b": True})),
    "masked": lambda: optax.chain(
        optax.sgd(1e-2), optax.masked(optax.set_to_zero(), {"w": False, "b": True})
    ),
    "in a branch": lambda: optax.apply_if_finite(partitioned(), 3),
    "in an evolve": lambda: evolve(partitioned(), evolve_every=1),
    "injected": lambda: optax.inject_hyperparams(
        lambda rate: optax.chain(optax.sgd(rate), optax.freeze({"w": False, "b": True}))
    )(rate=1e-2),
}


def product(params):
    return jnp.sum((params["w"] * params["b"] - 2.0) ** 2)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("base", FREEZING)
def test_a_leaf_that_the_base_freezes_does_not_mutate(base, jit):
    kwargs = {"evolve_every": 1, "sigma": 0.1, "accept": accept.always()}

    def update(**more):
        tx = evolve(FREEZING[base](), **kwargs, **more)
        step = lambda g, s: tx.update(g, s, PAIR, value_fn=product)  # noqa: E731
        return (jax.jit(step) if jit else step)(jax.grad(product)(PAIR), tx.init(PAIR))[0]

    updates = update()
    chex.assert_trees_all_equal(updates["b"], jnp.zeros(3))
    assert (updates["w"] != 0).all()
    assert (update(mutable={"w": True, "b": True})["b"] != 0).all()


@pytest.mark.parametrize("base", [optax.set_to_zero(), optax.sgd(0.0)], ids=["zero", "rate zero"])
def test_a_base_that_moves_nothing_leaves_all_to_the_cycles(base):
    tx = evolve(base, evolve_every=1, accept=accept.always())
    updates, _ = tx.update(PAIR, tx.init(PAIR), PAIR, value_fn=product)
    assert all((leaf != 0).all() for leaf in updates.values())


# What is evaluated is what is deployed.


@pytest.mark.wide
@pytest.mark.parametrize("reset_base", [False, True])
def test_no_accepted_cycle_ends_worse_where_a_base_deploys_other_parameters(reset_base):
    deployed = contrib.schedule_free_eval_params

    def hilly(p):
        return jnp.sum((p - 1.0) ** 2 * jnp.arange(1, 5)) + 3 * jnp.sum(1 - jnp.cos(3 * p))

    def value_fn(params, base_state):
        return hilly(deployed(base_state, params))

    accepted = 0
    for seed in range(4):
        tx = evolve(
            contrib.schedule_free_sgd(0.04), evolve_every=4, sigma=0.003, key=seed,
            reset_base=reset_base,
        )  # fmt: skip
        params = jnp.array([4.0, -3.0, 2.5, 5.0]) + 0.3 * seed
        state = tx.init(params)

        def go(params, state, evolve_now, tx=tx):
            updates, state = tx.update(
                jax.grad(hilly)(params), state, params, value_fn=value_fn, evolve=evolve_now
            )
            return optax.apply_updates(params, updates), state

        step, idle = jax.jit(lambda p, s: go(p, s, None)), jax.jit(lambda p, s: go(p, s, False))
        for at in range(1, 29):
            without, (params, state) = idle(params, state), step(params, state)
            if at % 4 or not bool(state.info.accepted):
                continue
            accepted += 1
            chosen = jnp.minimum(state.info.best_fitness, state.info.child_fitness)
            now = hilly(deployed(state.base_state, params))
            np.testing.assert_allclose(now, chosen, rtol=1e-5)
            assert now <= hilly(deployed(without[1].base_state, without[0])) + 1e-4
    assert accepted > 5


# Nothing to choose.


@pytest.mark.crossed(1)
@pytest.mark.parametrize("reset_base", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        presets.metric(),
        {"accept": accept.always(), "recombine": recombine.mean()},
        {"accept": accept.always(), "execution": Execution(candidate_batch_size=4)},
    ],
    ids=["metric", "mean", "batches"],
)
def test_where_all_members_tie_the_base_step_stands(kwargs, reset_base):
    def error_rate(params):
        return jnp.mean(jnp.sign(params) != 1).astype(jnp.float32)

    options = {**kwargs, "evolve_every": 4, "sigma": 0.01, "reset_base": reset_base}
    tx, alone = evolve(optax.adam(1e-3), **options), optax.adam(1e-3)
    params = expected = jnp.array([3.0, -2.0, 5.0])
    grads = jnp.array([0.1, 0.2, -0.3])
    state, alone_state = tx.init(params), alone.init(params)
    update = jax.jit(lambda s, p: tx.update(grads, s, p, value_fn=error_rate))
    alone_update = jax.jit(lambda s, p: alone.update(grads, s, p))
    for _ in range(4):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        updates, alone_state = alone_update(alone_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert int(state.cycle) == 1
    assert not bool(state.info.accepted)
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(state.base_state, alone_state)


def test_without_noise_nothing_is_accepted():
    tx = evolve(optax.sgd(0.1), evolve_every=1, accept=accept.always(), sigma=0.0)
    _, state = tx.update(START, tx.init(START), START, value_fn=loss)
    assert not bool(state.info.accepted)
