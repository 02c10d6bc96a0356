"""A cycle that is driven from outside is the cycle in jit, to the bit."""

import itertools
import math
import pickle

from additions import AdamScaled, Annealed, OneFifth
from ask_tell_worker import finished, score, toy_params
import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from layouts import Layout
import numpy as np
import optax
import pytest
from rules import Finite

from egd_optax import Execution, accept, ask_tell, egd, evolve, noise, recombine, sigma
from egd_optax.ask_tell import ask, member, tell
from egd_optax.callback import host_value_fn

PARAMS = toy_params()


class Heavy(noise.Noise):
    """Draws its own numbers, and form is not the library's."""

    def draw(self, key, leaf):
        return (jax.random.laplace(key, leaf.shape),)

    def form(self, parts, leaf):
        return parts[0] / 2**0.5


def other_score(params):
    """What `accept` compares where it compares another fitness."""
    return -score(jax.tree.map(lambda leaf: leaf[::-1], params))


def ranked(fitness):
    return jnp.where(fitness < jnp.median(fitness), 1.0, -0.5) / fitness.size


def loss(params):
    return sum(jnp.mean((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def gradient(params):
    return jax.tree.map(lambda leaf: leaf - 0.25, params)


# Each setting in some case beside each of any other.
GRID = {
    "noise": {
        "gaussian": {},
        "low rank": {"noise": noise.low_rank(2)},
        "drawn": {"noise": Heavy()},
        "adapted": {"noise": OneFifth()},
        "by moments": {"noise": AdamScaled(), "base": optax.adam(0.01), "sigma": 0.01},
        "by statistic": {"noise": noise.separable()},
    },
    "recombine": {
        "mean": {"recombine": recombine.mean(0.5)},
        "softmax": {"recombine": recombine.softmax(0.5, 0.5)},
        "elite weights": {"recombine": recombine.elite_weights(lambda f: [0.75, 0.25], 0.25)},
        "centered rank": {"recombine": recombine.centered_rank()},
        "member weights": {"recombine": recombine.member_weights(ranked)},
    },
    "accept": {
        "best": {},
        "improved": {"accept": accept.improved()},
        "always": {"accept": accept.always()},
        "annealed": {"accept": Annealed()},
        "finite": {"accept": Finite()},
    },
    "antithetic": {"plain": {}, "antithetic": {"antithetic": True}},
    "generations": {"one generation": {}, "three generations": {"generations": 3}},
    "guard": {"one fitness": {"guard": False}, "two fitnesses": {"guard": True}},
    "execution": {
        "host": {},
        "device": {"execution": Execution(memory="device")},
        "replay": {"execution": Execution(memory="replay")},
        "batches": {"execution": Execution(candidate_batch_size=4)},
    },
    "sigma": {"constant": {}, "path length": {"sigma": sigma.path_length(0.1)}},
    "rest": {
        "straight": {},
        "adam": {"es_optimizer": optax.adam(0.01), "reset_base": True},
        "masked": {"mutable": {"large": True, "left": False, "right": True}},
    },
}


def covered(grid):
    """Cases, one setting of each kind, in which every two settings of two kinds meet."""
    kinds = [[(kind, name) for name in names] for kind, names in grid.items()]
    missing = {
        pair for a, b in itertools.combinations(kinds, 2) for pair in itertools.product(a, b)
    }
    cases = []
    while missing:
        start = dict(min(missing))
        for options in kinds:
            if options[0][0] not in start:
                case = list(start.items())
                new = [sum(bool({(a, b), (b, a)} & missing) for a in case) for b in options]
                start |= [options[new.index(max(new))]]
        case = [(kind, start[kind]) for kind in grid]
        missing -= set(itertools.combinations(case, 2))
        cases.append(start)
    return cases


CASES = covered(GRID)


def settings_of(case):
    settings = {"base": optax.sgd(0.25, momentum=0.9), "sigma": 0.1, "key": 3, "population_size": 8}
    for kind, name in case.items():
        settings |= GRID[kind][name]
    guard = settings.pop("guard")
    tx = evolve(settings.pop("base"), evolve_every=1, **settings)
    return tx, guard and settings.get("accept", accept.best()).compares


def scores_of(asked):
    """The fitness of all that a round asks for, each candidate made alone."""
    fn = other_score if asked.ticket.kind == "accept" else score
    ticket, parent = asked.ticket, asked.parent
    return [fn(member(ticket, parent, index)) for index in range(ticket.size)]


def cycle_in_jit(tx, params, state, guard=False):
    """The updates and the state after one step, with scores that NumPy computes."""
    functions = {"value_fn": host_value_fn(score)}
    if guard:
        functions["accept_value_fn"] = host_value_fn(other_score)
    return jax.jit(lambda p, s: tx.update(gradient(p), s, p, **functions))(params, state)


def opened(tx, params=PARAMS, **kwargs):
    return jax.jit(lambda p, s: ask(tx, gradient(p), s, p, **kwargs))(params, tx.init(params))


def through(tx, asked, state, params, scores=scores_of):
    """The updates and the state after the last round."""
    while isinstance(asked, ask_tell.Asked):
        asked, state = tell(tx, asked, scores(asked), state, params)
    return asked, state


def test_the_cases_cover_every_two_settings():
    pairs = {frozenset(pair) for case in CASES for pair in itertools.combinations(case.items(), 2)}
    kinds = itertools.combinations(GRID, 2)
    assert len(pairs) == sum(len(GRID[one]) * len(GRID[other]) for one, other in kinds)
    assert len(CASES) < 60


@pytest.mark.exact
@pytest.mark.crossed(4)
@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(case.values()))
def test_it_is_the_cycle_in_jit_to_the_bit(case):
    tx, guard = settings_of(case)
    expected = cycle_in_jit(tx, PARAMS, tx.init(PARAMS), guard)
    asked, state = opened(tx, accept_fitness=guard)
    chex.assert_trees_all_equal(through(tx, asked, state, PARAMS), expected)
    assert bool(expected[1].info.best_fitness < np.inf)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_it_is_in_few_digits(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    tx = evolve(optax.sgd(0.25), evolve_every=1, sigma=0.1, recombine=recombine.mean(0.5))
    asked, state = opened(tx, params)
    found = through(tx, asked, state, params)
    chex.assert_trees_all_equal(found, cycle_in_jit(tx, params, tx.init(params)))


@pytest.mark.exact
@pytest.mark.crossed(1)
@pytest.mark.parametrize("generations", [1, 3])
@pytest.mark.parametrize("rule", [accept.always(), accept.best()], ids=repr)
@pytest.mark.parametrize("kind", ["gaussian", "low rank", "by moments"])
def test_the_step_of_an_optimizer_rounds_alike(kind, rule, generations):
    settings = {"base": optax.sgd(0.25), "sigma": 0.1, **GRID["noise"][kind]}
    tx = evolve(
        settings.pop("base"), evolve_every=1, es_optimizer=optax.adam(0.01), accept=rule,
        generations=generations, recombine=recombine.centered_rank(), **settings,
    )  # fmt: skip
    found = through(tx, *opened(tx), PARAMS)
    chex.assert_trees_all_equal(found, cycle_in_jit(tx, PARAMS, tx.init(PARAMS)))


@pytest.mark.wide
@pytest.mark.exact
def test_steps_and_cycles_go_on_with_the_same_bits():
    # An anchor of the base moves along, moments are reset, and counters go on.
    tx = evolve(optax.contrib.cocob(), evolve_every=2, sigma=lambda cycle: 0.1 * 0.5**cycle)
    jitted = jax.jit(
        lambda p, s: tx.update(gradient(p), s, p, value_fn=host_value_fn(score), evolve=True)
    )
    params, state = PARAMS, tx.init(PARAMS)
    own_params, own_state = params, state
    for _ in range(3):
        updates, state = jitted(params, state)
        asked, own_state = jax.jit(lambda p, s: ask(tx, gradient(p), s, p))(own_params, own_state)
        own_updates, own_state = through(tx, asked, own_state, own_params)
        chex.assert_trees_all_equal((own_updates, own_state), (updates, state))
        params = optax.apply_updates(params, updates)
        own_params = optax.apply_updates(own_params, own_updates)
    assert int(state.cycle) == 3


def test_the_accepted_child_is_the_candidate_that_was_scored():
    tx = egd(0.25, sigma=0.1, accept=accept.improved(), recombine=recombine.mean(0.5))
    asked, state = opened(tx)
    asked, state = tell(tx, asked, range(asked.ticket.size), state, PARAMS)
    child = member(asked.ticket, asked.parent, 0)
    updates, state = tell(tx, asked, [-1.0], state, PARAMS)
    assert bool(state.info.accepted)
    chex.assert_trees_all_equal(jax.jit(optax.apply_updates)(PARAMS, updates), child)


def test_members_come_in_any_order_alone_or_in_ranges():
    tx = egd(0.25, sigma=0.1, antithetic=True)
    asked, _ = opened(tx)
    ticket, parent = asked.ticket, asked.parent
    order = np.array([5, 2, 8, 0, 1, 7, 4])
    together = member(ticket, parent, order)
    in_jit = jax.jit(member)
    for at, index in enumerate(order):
        one = jax.tree.map(lambda leaf, at=at: leaf[at], together)
        chex.assert_trees_all_equal(member(ticket, parent, int(index)), one)
        chex.assert_trees_all_equal(in_jit(ticket, parent, index), one)
    parent_alone = jax.jit(optax.apply_updates)(
        PARAMS, jax.tree.map(lambda g: -0.25 * g, gradient(PARAMS))
    )
    chex.assert_trees_all_close(member(ticket, parent, 0), parent_alone, rtol=1e-6)
    assert member(ticket, parent, np.arange(0))["left"].shape == (0, *PARAMS["left"].shape)


def test_the_ticket_and_the_parent_are_enough():
    tx = egd(0.25, sigma=0.1, noise=noise.low_rank())
    asked, _ = opened(tx)
    packed = pickle.dumps(asked.ticket)
    assert len(packed) < 1500
    ticket = pickle.loads(packed)
    parent = ask_tell.Parent(*jax.tree.map(np.asarray, tuple(asked.parent)))
    chex.assert_trees_all_equal(member(ticket, parent, 3), member(asked.ticket, asked.parent, 3))
    assert ticket == asked.ticket
    assert hash(ticket) == hash(asked.ticket)
    later, _ = tell(tx, asked, range(8), *reversed((PARAMS, opened(tx)[1])))
    assert later.ticket != ticket
    assert later.ticket.time > ticket.time


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf, 1e300])
def test_a_missing_member_counts_as_worst(worst):
    tx = egd(0.25, sigma=0.1, accept=accept.always())
    asked, state = opened(tx)

    def told(lost):
        return tell(tx, asked, [5.0, 3.0, lost, 1.0, 2.0, 9.0, 8.0, 7.0], state, PARAMS)

    found = told(worst)
    chex.assert_trees_all_equal(found[0], told(8.5)[0])
    assert float(found[1].info.mean_fitness) == 5.0


def test_without_any_fitness_the_step_of_the_base_is_taken():
    tx = egd(0.25, sigma=0.1, generations=2)
    asked, state = opened(tx)
    base = tx.update(gradient(PARAMS), tx.init(PARAMS), PARAMS, evolve=False)[0]
    updates, state = through(tx, asked, state, PARAMS, lambda asked: [math.nan] * asked.ticket.size)
    chex.assert_trees_all_close(updates, base, rtol=1e-6)
    assert not bool(state.info.accepted)
    assert int(state.cycle) == 1


def test_a_round_that_is_told_twice_gives_the_same():
    tx = egd(0.25, sigma=0.1)
    asked, state = opened(tx)
    first = tell(tx, asked, range(8), state, PARAMS)
    tell(tx, first[0], [1.0], state, PARAMS)
    chex.assert_trees_all_equal(tell(tx, asked, range(8), state, PARAMS), first)


def test_all_of_it_in_jit():
    tx = evolve(optax.sgd(0.25), sigma=0.1, evolve_every=1)

    @jax.jit
    def step(params, state):
        asked, state = ask(tx, jax.grad(loss)(params), state, params)
        fitness = jax.lax.map(loss, member(asked.ticket, asked.parent, np.arange(8)))
        asked, state = tell(tx, asked, fitness, state, params)
        child = loss(member(asked.ticket, asked.parent, 0))
        return tell(tx, asked, child[None], state, params)

    updates, state = step(PARAMS, tx.init(PARAMS))
    plain = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p, value_fn=loss))
    expected, expected_state = plain(PARAMS, tx.init(PARAMS))
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("kind", [noise.gaussian(relative=False), noise.low_rank()], ids=repr)
def test_a_sharded_parent_has_sharded_members(kind, axis_type):
    tx = evolve(optax.sgd(0.25), sigma=0.1, noise=kind, recombine=recombine.centered_rank())
    plain = {"w0": np.ones((8, 32), np.float32), "w1": np.ones((32, 4), np.float32)}
    alone, _ = opened(tx, plain)
    layout = Layout({"fsdp": 8}, axis_type)
    with jax.set_mesh(layout.mesh):
        params = layout.place(plain, {name: layout.params[name] for name in plain})
        asked, state = opened(tx, params)
        for round_ in range(2):
            made = member(asked.ticket, asked.parent, asked.ticket.size - 1)
            for name, leaf in made.items():
                assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
            if round_ == 0:
                expected = member(alone.ticket, alone.parent, 7)
                chex.assert_trees_all_close(jax.device_get(made), expected, rtol=2e-5)
            many = member(asked.ticket, asked.parent, np.arange(asked.ticket.size))
            for name, leaf in many.items():
                spec = (None, *params[name].sharding.spec)
                whole = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(*spec))
                assert leaf.sharding.is_equivalent_to(whole, leaf.ndim)
            asked, state = tell(tx, asked, -np.arange(asked.ticket.size) - 1.0, state, params)
    for name, leaf in asked.items():
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)


def test_the_state_between_ask_and_tell_is_arrays():
    tx = egd(0.25, sigma=0.1, population_size=6)
    asked, state = opened(tx)
    stored = pickle.dumps((PARAMS, state, asked))
    again = finished(stored, egd(0.25, sigma=0.1, population_size=6))
    chex.assert_trees_all_equal(again, through(tx, asked, state, PARAMS))
    leaves, structure = jax.tree.flatten(asked)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    shapes = jax.eval_shape(lambda: opened(tx)[0])
    assert jax.tree.structure(shapes) == structure


# What is refused.

TX = egd(0.25, sigma=0.1)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (8, ValueError, "`index` must be from 0 to 7, got 8"),
        (-1, ValueError, "`index` must be from 0 to 7, got -1"),
        (np.array([1, 9]), ValueError, "`index` must be from 0 to 7"),
        (1.0, TypeError, "`index` must be an int or a vector of ints, got float64"),
        (True, TypeError, "`index` must be an int or a vector of ints, got bool"),
        ([[0]], TypeError, "`index` must be an int or a vector of ints"),
    ],
)
def test_an_index_out_of_range_is_refused(index, error, message):
    asked, _ = opened(TX)
    with pytest.raises(error, match=message):
        member(asked.ticket, asked.parent, index)


def test_a_candidate_is_made_of_a_ticket_and_a_parent():
    asked, _ = opened(TX)
    with pytest.raises(TypeError, match="`parent` must be that of a round, got dict"):
        member(asked.ticket, PARAMS, 0)
    with pytest.raises(TypeError, match="`ticket` must be that of a round, got int"):
        member(3, asked.parent, 0)
    asked, state = opened(TX)
    later, _ = tell(TX, asked, range(8), state, PARAMS)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    next_step, _ = ask(TX, zeros, state, PARAMS)
    for ticket, parent in itertools.permutations([asked, later, next_step], 2):
        with pytest.raises(ValueError, match="`parent` must be that of the ticket"):
            member(ticket.ticket, parent.parent, 0)


@pytest.mark.parametrize(
    ("fitness", "error", "message"),
    [
        ([1.0] * 7, ValueError, r"`fitness` must be .*, got shape \(7,\) for 8 candidates"),
        (np.ones((8, 1)), ValueError, "`fitness` must be .*, got shape"),
        (np.ones(8, np.float16), TypeError, "`fitness` must be .*, got float16"),
        (jnp.ones(8, jnp.bfloat16), TypeError, "`fitness` must be .*, got bfloat16"),
        (np.ones(8, complex), TypeError, "`fitness` must be .*, got complex128"),
        ([1.0] * 7 + [None], TypeError, "`fitness` must be .*, got object"),
    ],
)
def test_fitness_of_another_length_or_dtype_is_refused(fitness, error, message):
    asked, state = opened(TX)
    with pytest.raises(error, match=message):
        tell(TX, asked, fitness, state, PARAMS)


def test_the_ticket_of_another_optimizer_is_refused():
    asked, state = opened(TX)
    for other in (egd(0.25, population_size=10), egd(0.25, noise=noise.low_rank())):
        with pytest.raises(ValueError, match="`asked` must be of this optimizer, got a ticket of"):
            tell(other, asked, range(8), state, PARAMS)
    asked, state = opened(egd(0.25, recombine=recombine.member_weights(ranked)))
    same = egd(0.5, recombine=recombine.member_weights(ranked))
    assert tell(same, asked, range(8), state, PARAMS)


def test_a_ticket_of_another_step_is_refused():
    asked, state = opened(TX)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    _, later = TX.update(zeros, state, PARAMS, evolve=False)
    with pytest.raises(ValueError, match="`asked` must be of the step of `state`.* older than"):
        tell(TX, asked, range(8), later, PARAMS)
    with pytest.raises(ValueError, match="`asked` must be of the step of `state`.* newer than"):
        tell(TX, asked, range(8), TX.init(PARAMS), PARAMS)
    _, ended = through(TX, asked, state, PARAMS)
    with pytest.raises(ValueError, match="`asked` must be of the step of `state`.* older than"):
        tell(TX, asked, range(8), ended, PARAMS)
    other = state._replace(key_data=state.key_data + 1)
    with pytest.raises(ValueError, match="`asked` must be of the run of `state`"):
        tell(TX, asked, range(8), other, PARAMS)


def test_a_cycle_that_is_over_is_refused():
    asked, state = opened(TX)
    updates, state = through(TX, asked, state, PARAMS)
    with pytest.raises(TypeError, match="`asked` must be an open cycle, got dict"):
        tell(TX, updates, [1.0], state, PARAMS)


def test_functions_among_the_parameters_are_refused_by_name():
    params = {"w": jnp.ones(3), "activation": jnp.tanh}
    grads = {"w": jnp.ones(3), "activation": None}
    with pytest.raises(TypeError, match="`params` must hold arrays alone for `ask`"):
        ask(TX, grads, TX.init(params), params)


def test_an_optimizer_that_cannot_be_asked_is_refused():
    def asks(tx, **kwargs):
        return ask(tx, PARAMS, tx.init(PARAMS), PARAMS, **kwargs)

    with pytest.raises(TypeError, match="`tx` must be what `evolve` or `egd` returned"):
        asks(optax.chain(TX, optax.scale(0.5)))
    with pytest.raises(TypeError, match="`tx` must be what `evolve` or `egd` returned"):
        asks(optax.sgd(0.1))
    with pytest.raises(ValueError, match="`tx` must hold no other `evolve`"):
        asks(evolve(TX))
    with pytest.raises(ValueError, match="`aux` must be None for `ask`"):
        asks(egd(0.1, aux={"steps": 0}))
    with pytest.raises(ValueError, match="`accept_fitness` must be False with accept=accept.alw"):
        asks(egd(0.1, accept=accept.always()), accept_fitness=True)
    with pytest.raises(TypeError, match="`accept_fitness` must be True or False"):
        asks(TX, accept_fitness=other_score)
    with pytest.raises(TypeError, match="`value_fn` must be left out of `ask`"):
        asks(TX, value_fn=loss)


def test_a_line_search_gets_its_loss():
    tx = evolve(optax.lbfgs(), sigma=0.1)
    state = tx.init(PARAMS)
    value, grads = jax.value_and_grad(loss)(PARAMS)
    extra = {"value": value, "grad": grads}
    asked, state = ask(tx, grads, state, PARAMS, base_value_fn=loss, **extra)
    assert float(loss(member(asked.ticket, asked.parent, 0))) < float(value)
