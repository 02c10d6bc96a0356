"""Mirrored pairs, rank weights, generations, the step and the guard, against NumPy."""

import chex
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded import fitness_of, record_evaluations, toy_params
from rules import ACCEPT, Finite

from egd_optax import Execution, accept, evolve, noise, recombine

MEMORY = ("host", "device", "replay")


def centered(fitness):
    """Weights by comparing every member with every other."""
    finite = np.isfinite(fitness)
    wins = np.array([(finite & (fitness > f)).sum() - (fitness < f).sum() for f in fitness])
    wins = np.where(finite, wins, 0)
    return wins / max(wins[wins > 0].sum(), 1)


def centered_ranks(fitness):
    return recombine.centered_rank().weights(fitness, fitness.size)


distinct = st.lists(st.integers(-(10**6), 10**6), min_size=9, max_size=9, unique=True)


def by_place(members, parent):
    """Members in an order that does not depend on when they were evaluated."""
    return sorted(members, key=lambda member: float(member["a"][0, 0] - parent["a"][0, 0]))


@given(fitness=distinct, lost=st.sets(st.integers(0, 6)))
def test_weights_count_the_comparisons_that_a_member_wins(fitness, lost):
    fitness = np.array(fitness, np.float32)
    fitness[list(lost)] = np.inf  # two are left
    weights = np.asarray(centered_ranks(jnp.asarray(fitness)))
    np.testing.assert_allclose(weights, centered(fitness), atol=1e-6)
    assert not weights[np.isinf(fitness)].any()
    np.testing.assert_allclose([weights[weights > 0].sum(), weights.sum()], [1, 0], atol=1e-5)
    # Ranks alone count.
    np.testing.assert_array_equal(weights, centered_ranks(jnp.asarray(fitness) / 2 - 7))


@pytest.mark.wide
def test_equal_fitness_weighs_the_same_and_says_nothing():
    weights = centered_ranks(jnp.array([3.0, 1.0, 3.0, 0.0, 3.0]))
    assert weights[0] == weights[2] == weights[4] < weights[1] < weights[3]
    for silent in ([2.0, 2.0, 2.0], [jnp.inf, jnp.inf], [1.0, jnp.inf], [5.0]):
        np.testing.assert_array_equal(centered_ranks(jnp.array(silent)), 0)


@given(fitness=distinct, lost=st.sets(st.integers(0, 8)), size=st.sampled_from([8, 9]))
def test_shuffled_weights_are_those_of_the_rule_in_pairs(fitness, lost, size):
    fitness = np.array(fitness[:size], np.float32)
    fitness[[at for at in lost if at < size]] = np.inf
    pairs_of = slice(size % 2, None)

    def pairs(weights):
        whole = np.isfinite(fitness[pairs_of].reshape(-1, 2)).all(axis=1)
        both = np.where(whole[:, None], np.asarray(weights)[pairs_of].reshape(-1, 2), 0)
        return sorted(tuple(sorted(pair)) for pair in both.tolist())

    for rule in (recombine.centered_rank(), recombine.softmax(1e6), recombine.mean(0.5)):
        weights = rule.weights(jnp.asarray(fitness), rule.support(size) or size)
        shuffled = recombine.shuffled(rule).weights(jnp.asarray(fitness), size)
        assert pairs(shuffled) == pairs(weights)
        assert not np.asarray(shuffled)[np.isinf(fitness)][size % 2 :].any()


def test_shuffled_weights_do_not_depend_on_who_is_better_and_differ_in_each_generation():
    rule = recombine.shuffled(recombine.centered_rank())
    fitness = jax.random.normal(jax.random.key(0), (2000, 8))
    weights = jax.vmap(lambda one: rule.weights(one, 8))(fitness)
    by_rank = jnp.take_along_axis(weights, jnp.argsort(fitness), axis=1)
    selected = recombine.centered_rank().weights(fitness[0], 8)
    assert jnp.std(weights) == pytest.approx(float(jnp.std(selected)), rel=1e-4)
    # Standard errors are 0.005. One pair in four stays where it was, half of these as they were.
    assert jnp.abs(weights.mean(axis=0)).max() < 0.02
    assert jnp.abs(by_rank.mean(axis=0)).max() < 0.02
    assert len({tuple(one) for one in weights.tolist()}) > 1800
    # The last bit of one fitness makes another order.
    nudged = fitness.at[:, 3].set(jnp.nextafter(fitness[:, 3], jnp.inf))
    other = jax.vmap(lambda one: rule.weights(one, 8))(nudged)
    assert jnp.any(other != weights, axis=1).mean() > 0.9
    assert rule == recombine.shuffled(recombine.centered_rank())
    assert repr(rule) == "recombine.shuffled(rule=recombine.centered_rank())"
    with pytest.raises(TypeError, match="`rule` must be an operator, got 'mean': write `recombine"):
        recombine.shuffled("mean")

    class Reads(recombine.Recombine):
        def reads(self, aux):
            return aux

    with pytest.raises(ValueError, match="`rule` must weigh by the fitness alone, got"):
        recombine.shuffled(Reads())


@pytest.mark.parametrize("rule", [recombine.centered_rank(), recombine.mean(0.5)], ids=str)
def test_a_run_with_shuffled_ranks_jumps_as_far_and_selects_nothing(rule):
    """In one step of many pairs: the child goes downhill by selection, and anywhere without."""

    def child(rule, key):
        tx = evolve(
            optax.set_to_zero(), evolve_every=1, population_size=16, sigma=0.1, recombine=rule,
            noise=noise.gaussian(relative=False), accept=accept.always(), antithetic=True, key=key,
        )  # fmt: skip
        params = jnp.zeros(100)
        updates, _ = tx.update(None, tx.init(params), params, value_fn=jnp.sum)
        return updates

    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), 200))
    selected, random = (
        jax.jit(lambda keys, rule=rule: jax.lax.map(lambda key: child(rule, key), keys))(keys)
        for rule in (rule, recombine.shuffled(rule))
    )
    downhill = -np.sum(selected, axis=1), -np.sum(random, axis=1)
    assert np.mean(downhill[0]) > 5 * np.std(downhill[0]) / 200**0.5
    assert abs(np.mean(downhill[1])) < 4 * np.std(downhill[1]) / 200**0.5
    lengths = [np.mean(np.sum(jumps**2, axis=1)) for jumps in (selected, random)]
    # Selection prefers members that went far downhill.
    assert 0.8 < lengths[1] / lengths[0] < 1.05


@pytest.mark.crossed(2)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "kind"),
    [(1, noise.gaussian()), (4, noise.low_rank())],
    ids=["gaussian", "low_rank, in batches"],
)
def test_numpy_reproduces_the_child_of_all_members(antithetic, batch_size, kind):
    size = 6
    seen, parent, landed, info = record_evaluations(
        population_size=size,
        sigma=0.3,
        noise=kind,
        antithetic=antithetic,
        recombine=recombine.centered_rank(),
        es_optimizer=optax.sgd(0.5),
        accept=Finite(),
        execution=Execution(candidate_batch_size=batch_size),
    )
    *members, child = seen
    assert int(info.evaluations) == len(seen) == size + antithetic + 1
    weights = centered(np.array([fitness_of(member) for member in members], np.float32))
    expected = jax.tree.map(
        lambda base, *leaves: (
            base + 0.5 * sum(w * (leaf - base) for w, leaf in zip(weights, leaves, strict=True))
        ),
        parent,
        *members,
    )
    chex.assert_trees_all_close(child, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(landed, expected, rtol=1e-4, atol=1e-5)


def test_a_step_scales_the_way_to_the_mean_of_the_elites():
    *_, parent, whole, _ = record_evaluations(accept=accept.always())
    *_, half, _ = record_evaluations(accept=accept.always(), es_optimizer=optax.sgd(0.5))
    middle = jax.tree.map(lambda base, leaf: (base + leaf) / 2, parent, whole)
    chex.assert_trees_all_close(half, middle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_antithetic_members_are_mirrored_pairs_around_the_parent(batch_size):
    (first, *members), parent, *_ = record_evaluations(
        population_size=4,
        antithetic=True,
        execution=Execution(candidate_batch_size=batch_size),
    )
    members = by_place(members[:4], parent)
    chex.assert_trees_all_close(first, parent, rtol=1e-6)
    for one, other in ((members[0], members[3]), (members[1], members[2])):
        middle = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
        chex.assert_trees_all_close(middle, parent, rtol=1e-5, atol=1e-6)


@pytest.mark.wide
@pytest.mark.exact
def test_a_pair_takes_one_draw_which_is_that_of_its_first_member():
    plain, *_ = record_evaluations(population_size=5)
    paired, *_ = record_evaluations(population_size=4, antithetic=True)
    chex.assert_trees_all_equal(plain[1], paired[1])
    chex.assert_trees_all_equal(plain[3], paired[3])


@pytest.mark.wide
@pytest.mark.exact
def test_mirrored_elites_are_the_same_in_every_memory_mode():
    wave = jnp.linspace(-1, 2, 24).reshape(4, 6)
    params = {"w": wave, "half": wave.astype(jnp.bfloat16), "turned": (1 + 2j) * wave}

    def loss(params):
        return sum(jnp.sum(jnp.abs(p - 0.3) ** 2).astype(jnp.float32) for p in params.values())

    def landed(memory, rule, batch_size):
        tx = evolve(
            optax.sgd(0.0),
            evolve_every=1,
            population_size=8,
            generations=2,
            sigma=0.2,
            antithetic=True,
            recombine=recombine.mean(elite_fraction=0.5),
            accept=ACCEPT[rule],
            execution=Execution(memory=memory, candidate_batch_size=batch_size),
        )

        @jax.jit
        def step(params, state):
            updates, state = tx.update(params, state, params, value_fn=loss)
            return optax.apply_updates(params, updates), state

        return step(*step(params, tx.init(params)))[0]

    for rule, batch_size in (("best", 1), ("always", 4)):
        first, *others = (landed(memory, rule, batch_size) for memory in MEMORY)
        for before, after in zip(params.values(), first.values(), strict=True):
            assert (before != after).any()
        for other in others:
            chex.assert_trees_all_equal(first, other)


@pytest.mark.parametrize(
    ("antithetic", "rule"),
    [(False, recombine.mean()), (True, recombine.centered_rank())],
    ids=["mean", "pairs by rank"],
)
def test_a_generation_starts_from_what_the_one_before_chose(antithetic, rule):
    size = 4
    seen, _, landed, info = record_evaluations(
        population_size=size,
        generations=3,
        sigma=0.3,
        antithetic=antithetic,
        recombine=rule,
        accept=accept.improved(),
    )
    a_round = size + antithetic + 1
    assert int(info.evaluations) == len(seen) == 3 * a_round
    rounds = [seen[at : at + a_round] for at in range(0, len(seen), a_round)]
    for before, after in zip(rounds, [*rounds[1:], [landed]], strict=True):
        expected = min(before[0], before[-1], key=fitness_of)
        chex.assert_trees_all_close(after[0], expected, rtol=1e-5, atol=1e-6)
    drawn = [jax.tree.map(np.subtract, members[1], members[0]) for members in rounds]
    assert (np.sign(drawn[0]["a"]) != np.sign(drawn[1]["a"])).any()


def test_value_fn_is_told_the_generation_and_traced_once():
    batches = jnp.array([0.0, 10.0, 20.0])
    params = jnp.full(50, 8.0)

    @chex.assert_max_traces(n=1)
    def value_fn(params, generation, batches):
        return jnp.mean((params - batches[generation]) ** 2)

    tx = evolve(
        optax.sgd(0.0), evolve_every=2, population_size=2, generations=3, accept=Finite(), sigma=0.0
    )
    update = jax.jit(lambda s: tx.update(params, s, params, value_fn=value_fn, batches=batches))
    state = update(update(tx.init(params))[1])[1]
    # The parent of the first generation, and what is left of it in the last.
    np.testing.assert_allclose(state.info.parent_fitness, 64)
    np.testing.assert_allclose(state.info.child_fitness, 144)


def guarded(guard, **kwargs):
    """One cycle from `toy_params` around a base that stands still."""
    params = toy_params()
    tx = evolve(optax.sgd(0.0), evolve_every=1, sigma=0.3, **kwargs)
    updates, state = jax.jit(
        lambda p, s: tx.update(p, s, p, value_fn=fitness_of, accept_value_fn=guard)
    )(params, tx.init(params))
    return params, optax.apply_updates(params, updates), state.info


@pytest.mark.wide
@pytest.mark.parametrize(
    "rule", [recombine.mean(), recombine.centered_rank()], ids=["mean", "centered_rank"]
)
@pytest.mark.parametrize("name", ["improved", "best"])
def test_the_guard_decides_on_its_own_data(name, rule):
    start, landed, info = guarded(lambda p: -fitness_of(p), accept=ACCEPT[name], recombine=rule)
    # What is better by fitness is worse by the guard.
    assert float(info.best_fitness) < float(info.parent_fitness)
    assert not bool(info.accepted)
    chex.assert_trees_all_equal(start, landed)
    _, landed, info = guarded(fitness_of, accept=ACCEPT[name], recombine=rule)
    unguarded = guarded(None, accept=ACCEPT[name], recombine=rule)
    assert bool(info.accepted)
    chex.assert_trees_all_close(landed, unguarded[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["improved", "best"])
def test_what_the_guard_cannot_judge_is_not_taken(name):
    start, landed, info = guarded(lambda p: jnp.nan * fitness_of(p), accept=ACCEPT[name])
    assert not bool(info.accepted)
    chex.assert_trees_all_equal(start, landed)


@pytest.mark.wide
@pytest.mark.parametrize(("batch_size", "bad"), [(1, np.nan), (4, -np.inf)])
def test_a_member_without_finite_fitness_weighs_nothing(bad, batch_size):
    def score_of(params):
        return bad if params["a"][0, 0] > parent["a"][0, 0] + 1e-6 else fitness_of(params)

    kwargs = {
        "population_size": 8,
        "antithetic": True,
        "recombine": recombine.centered_rank(),
        "accept": Finite(),
        "execution": Execution(candidate_batch_size=batch_size),
    }
    _, parent, *_ = record_evaluations(**kwargs)
    (*members, child), _, landed, info = record_evaluations(score_of, **kwargs)
    scores = np.array([score_of(member) for member in members])
    assert 0 < np.isfinite(scores).sum() < len(scores)
    scores = np.where(np.isfinite(scores), scores, np.inf)
    weights = centered(scores)
    expected = jax.tree.map(
        lambda base, *leaves: (
            base + sum(w * (x - base) for w, x in zip(weights, leaves, strict=True))
        ),
        parent,
        *members,
    )
    chex.assert_trees_all_close(child, expected, rtol=1e-4, atol=1e-5)
    chex.assert_tree_all_finite(landed)
    assert np.isfinite(info.mean_fitness)


def test_a_population_that_is_lost_leaves_the_base_step():
    _, parent, landed, info = record_evaluations(
        lambda _: np.nan, generations=2, recombine=recombine.centered_rank(), accept=accept.always()
    )
    chex.assert_trees_all_close(landed, parent, rtol=1e-6)
    assert not bool(info.accepted)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_weights_over_all_members_hold_none(batch_size):
    def temp_in_copies(population_size):
        params = jax.ShapeDtypeStruct((512, 512), jnp.float32)
        tx = evolve(
            optax.sgd(0.1),
            population_size=population_size,
            antithetic=True,
            recombine=recombine.centered_rank(),
            execution=Execution(candidate_batch_size=batch_size),
        )
        step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=lambda p: jnp.sum(p[0])))
        compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (512 * 512 * 4)

    assert temp_in_copies(64) - temp_in_copies(16) < 0.1
