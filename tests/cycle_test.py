"""A cycle redone in NumPy from the members that `value_fn` was shown."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import POPULATION, fitness_of, observed_by, record_cycle, toy_params
from rules import ACCEPT, Finite

from egd_optax import Execution, accept, evolve, noise, recombine

MEMORY = ("host", "device", "replay")


def oracle_child(members, parent, weights_of, k):
    scores = np.array([fitness_of(member) for member in members])
    order = np.argsort(scores, kind="stable")[:k]
    weights = weights_of(scores[order].astype(np.float64))
    return jax.tree.map(
        lambda base, *leaves: (
            base
            + sum(
                w * (leaves[i].astype(np.float64) - base)
                for w, i in zip(weights, order, strict=True)
            )
        ),
        parent,
        *members,
    )


def softmax(fitness, temperature):
    e = np.exp(-(fitness - fitness.min()) / temperature)
    return e / e.sum()


def one_over_place(fitness):
    return 1.0 / jnp.arange(2, fitness.size + 2)


# For an elite fraction the rule, and what it weighs in NumPy.
RULES = {
    "mean": (recombine.mean, lambda f: np.full(f.size, 1 / f.size)),
    "softmax": (
        lambda fraction: recombine.softmax(0.02, fraction),
        lambda f: softmax(f, 0.02),
    ),
    "elite_weights": (
        lambda fraction: recombine.elite_weights(one_over_place, fraction),
        lambda f: 1 / np.arange(2, f.size + 2),
    ),
}


# Memory modes are the same to the bit, see `invariance_test.py`: each once is enough.
@pytest.mark.crossed(3)
@pytest.mark.parametrize(
    ("memory", "rule", "k"),
    [
        *(("host", rule, k) for rule in RULES for k in range(1, POPULATION + 1)),
        *((memory, "softmax", 3) for memory in MEMORY[1:]),
    ],
)
def test_numpy_reproduces_the_child(memory, rule, k):
    rule_of, weights_of = RULES[rule]
    members, rest, parent, landed, info = record_cycle(
        recombine=rule_of(k / POPULATION),
        accept=Finite(),
        sigma=0.1,
        execution=Execution(memory=memory),
    )
    assert len(members) == POPULATION
    assert len(rest) == 1  # the child
    expected = oracle_child(members, parent, weights_of, k)
    chex.assert_trees_all_close(rest[0], expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(landed, expected, rtol=1e-5, atol=1e-5)
    assert bool(info.accepted)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("memory", MEMORY)
def test_member_zero_is_the_parent_and_the_others_are_not(memory):
    members, _, parent, _, _ = record_cycle(execution=Execution(memory=memory))
    chex.assert_trees_all_close(members[0], parent, rtol=1e-6)
    for other in members[1:]:
        chex.assert_trees_all_equal_shapes_and_dtypes(other, members[0])
        for leaf, base in zip(jax.tree.leaves(other), jax.tree.leaves(members[0]), strict=True):
            assert (leaf != base).any()


@pytest.mark.wide
@pytest.mark.exact
@pytest.mark.parametrize("batch_size", [2, 5])
def test_members_are_the_same_to_the_bit_in_batches(batch_size):
    one, child, *_ = record_cycle()
    many, same_child, *_ = record_cycle(execution=Execution(candidate_batch_size=batch_size))
    by_value = lambda members: sorted(members, key=lambda member: float(member["a"][0, 0]))  # noqa: E731
    chex.assert_trees_all_equal(by_value(one), by_value(many))
    chex.assert_trees_all_equal(child, same_child)


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_noise_is_normal_with_the_promised_standard_deviation(relative):
    members, _, parent, _, _ = record_cycle(
        sigma=0.03, noise=noise.gaussian(relative=relative, min_scale=0.5)
    )
    columns = zip(*map(jax.tree.leaves, [parent, *members[1:]]), strict=True)
    for base, *mutants in columns:
        rms = max(np.sqrt(np.mean(base**2)), 0.5) if relative else 1.0
        drawn = np.concatenate([(mutant - base).ravel() for mutant in mutants]) / (0.03 * rms)
        tolerance = 5 / np.sqrt(drawn.size)
        assert abs(drawn.mean()) < tolerance
        assert abs(drawn.std() - 1) < tolerance
        assert abs((np.abs(drawn) < 1).mean() - 0.6827) < tolerance


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("memory", "k"), [("host", 1), ("device", 3), ("replay", 3), ("host", POPULATION)]
)
def test_info_reports_the_cycle(memory, k):
    members, rest, _, _, info = record_cycle(
        recombine=recombine.mean(k / POPULATION), execution=Execution(memory=memory)
    )
    scores = np.array([fitness_of(member) for member in members])
    np.testing.assert_allclose(info.parent_fitness, scores[0], rtol=1e-5)
    np.testing.assert_allclose(info.best_fitness, scores.min(), rtol=1e-5)
    np.testing.assert_allclose(info.mean_fitness, scores.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.child_fitness, fitness_of(rest[0]), rtol=1e-5)
    np.testing.assert_allclose(info.sigma, 0.02)
    assert int(info.evaluations) == POPULATION + 1 == len(members) + len(rest)
    assert int(info.cycle_index) == 0


@pytest.mark.crossed(5)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("rule", ["finite", "improved", "best"])
@pytest.mark.parametrize("sigma", [0.02, 3.0])
def test_acceptance_takes_what_its_rule_says(memory, rule, sigma):
    members, rest, parent, landed, info = record_cycle(
        accept=ACCEPT[rule], sigma=sigma, execution=Execution(memory=memory)
    )
    scores = np.array([fitness_of(member) for member in members])
    child, best = rest[0], members[int(scores.argmin())]
    outcomes = {
        "finite": [child],
        "improved": [parent, child],
        "best": [parent, best, child],
    }[rule]
    expected = min(outcomes, key=fitness_of)
    chex.assert_trees_all_close(landed, expected, rtol=1e-5, atol=1e-6)
    assert bool(info.accepted) == (expected is not parent)


@pytest.mark.wide
def test_a_schedule_gives_the_sigma_of_each_cycle():
    schedule = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.98)
    tx = evolve(optax.sgd(0.1), evolve_every=2, sigma=schedule)
    params = toy_params()
    state = tx.init(params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=fitness_of))
    sigmas = []
    for _ in range(6):
        updates, state = update(jax.grad(fitness_of)(params), state, params)
        params = optax.apply_updates(params, updates)
        sigmas.append(float(state.info.sigma))
    np.testing.assert_allclose(sigmas, [0, 0.1, 0.1, 0.098, 0.098, 0.1 * 0.98**2], rtol=1e-6)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kind", [noise.gaussian(), noise.low_rank()], ids=["full", "low rank"])
def test_a_negative_zero_is_no_better_than_zero(memory, kind):
    tx = evolve(
        optax.set_to_zero(), evolve_every=1, sigma=0.3, accept=accept.always(), noise=kind,
        recombine=recombine.mean(0.125), execution=Execution(memory=memory),
    )  # fmt: skip
    params = jnp.ones(4)

    def value_fn(params):
        return jnp.where(params[0] < 1, -0.0, 0.0)

    updates, _ = jax.jit(lambda s: tx.update(params, s, params, value_fn=value_fn))(tx.init(params))
    np.testing.assert_array_equal(updates, jnp.zeros(4))  # the parent was first


@pytest.mark.crossed(2)
@pytest.mark.parametrize("memory", MEMORY)
def test_ties_go_to_the_parent_and_then_to_the_smaller_index(memory):
    seen = []

    def weights(fitness):
        return jnp.arange(1.0, fitness.size + 1)

    def score(params):
        seen.append(np.array(params))
        return np.float32(1.0 if len(seen) <= 6 else 2.0)

    tx = evolve(
        optax.sgd(0.0),
        evolve_every=1,
        recombine=recombine.elite_weights(weights, elite_fraction=0.5),
        accept=accept.best(),
        execution=Execution(memory=memory),
    )
    params = jnp.ones(5)
    updates, state = tx.update(params, tx.init(params), params, value_fn=observed_by(score))
    chex.assert_trees_all_equal(updates, jnp.zeros(5))
    assert not bool(state.info.accepted)
    # Of 6 members that tie, of 8, the elites are 0 to 3, in that order.
    child = seen[0] + sum((i + 1) * (seen[i] - seen[0]) for i in range(4))
    np.testing.assert_allclose(seen[-1], child, rtol=1e-6)
