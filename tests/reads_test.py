"""Recombination that sees more than one number of each member: several objectives, worst cases."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layouts import Layout
import numpy as np
import optax
import pytest

from egd_optax import Execution, accept, ask_tell, evolve, noise, recombine

PARAMS = {"w": jnp.linspace(-1.0, 2.0, 24).reshape(4, 6), "b": jnp.linspace(-1.0, 1.0, 6)}
FACTORED = {"noise": noise.low_rank(), "execution": Execution(evaluate="factored")}
SETTINGS = {
    "plain": {},
    "always": {"accept": accept.always()},
    "pairs": {"antithetic": True},
    "pairs without their parent": {"antithetic": True, "accept": accept.always()},
    "generations": {"generations": 3},
    "batches": {"execution": Execution(candidate_batch_size=3)},
    "factored": FACTORED,
    "factored pairs": {**FACTORED, "antithetic": True},
    "an optimizer": {"es_optimizer": optax.adam(1e-2), "accept": accept.always()},
}


class ByWhatItReads(recombine.Recombine):
    """The ranks of a number that is read in place of the fitness."""

    def support(self, population_size):
        return None

    def reads(self, aux):
        return {"rank by": aux["number"]}

    def weights(self, fitness, support, read):
        return recombine.centered_rank().weights(read["rank by"], support)


def loss(params):
    return sum(jnp.mean((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def with_itself(params):
    value = loss(params)
    return value, {"number": value, "other": params["b"]}


AUX = jax.eval_shape(with_itself, PARAMS)[1]


def run(value_fn, rule, params=PARAMS, **kwargs):
    aux = AUX if value_fn is with_itself else kwargs.pop("aux", None)
    ground = {"evolve_every": 1, "population_size": 8, "sigma": 0.1, "recombine": rule}
    tx = evolve(optax.sgd(0.1), **{**ground, "aux": aux, **kwargs})

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(2):
        params, state = jax.block_until_ready(step(params, state))
    return params, state.info._replace(aux=None)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_read_belongs_to_its_member(name):
    """Ranks of a number that is the fitness move as ranks of the fitness do."""
    expected = run(loss, recombine.centered_rank(), **SETTINGS[name])
    found = run(with_itself, ByWhatItReads(), **SETTINGS[name])
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["plain", "pairs without their parent"])
def test_devices_that_divide_the_members_read_the_same(name, axis_type):
    expected = run(with_itself, ByWhatItReads(), **SETTINGS[name])
    mesh = Layout({"pop": 4}, axis_type).mesh
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        found = run(
            with_itself, ByWhatItReads(), params,
            **{**SETTINGS[name], "execution": Execution(population_axis="pop", mesh=mesh)},
        )  # fmt: skip
    chex.assert_trees_all_close(jax.device_get(found), expected, rtol=1e-5, atol=1e-6)


def test_the_worst_of_several_scenarios_is_that_of_numpy():
    class WorstCase(ByWhatItReads):
        def reads(self, aux):
            return jnp.max(aux)

        def weights(self, fitness, support, worst):
            return jnp.where(worst == jnp.min(worst), 1.0, 0.0)

    seen = []

    def value_fn(params):
        scenarios = jnp.abs(params - jnp.array([0.0, 1.0, 5.0]))
        jax.debug.callback(lambda one: seen.append(float(one)), params, ordered=True)
        return jnp.mean(scenarios), scenarios

    tx = evolve(
        optax.sgd(0.0), evolve_every=1, aux=jnp.zeros(3), recombine=WorstCase(), sigma=1.0,
        accept=accept.always(), noise=noise.gaussian(relative=False),
    )  # fmt: skip
    params = jnp.float32(2.0)
    updates, _ = jax.jit(lambda s, p: tx.update(p, s, p, value_fn=value_fn))(
        tx.init(params), params
    )
    jax.effects_barrier()
    worst = [max(abs(one - scenario) for scenario in (0, 1, 5)) for one in seen]
    means = [np.mean([abs(one - scenario) for scenario in (0, 1, 5)]) for one in seen]
    assert np.argmin(worst) != np.argmin(means)  # else the mean would do
    np.testing.assert_allclose(params + updates, seen[int(np.argmin(worst))], rtol=1e-6)


def test_a_member_without_finite_fitness_weighs_nothing_whatever_it_reads():
    class Wants(ByWhatItReads):
        def reads(self, aux):
            return aux

        def weights(self, fitness, support, wanted):
            return wanted / jnp.maximum(jnp.sum(wanted), 1.0)

    def value_fn(params):
        wanted = params > 1.0
        return jnp.where(wanted, jnp.nan, params), jnp.where(wanted, jnp.nan, 0.0)

    params = jnp.float32(0.9)
    found, info = run(value_fn, Wants(), params, aux=jnp.float32(0), accept=accept.always())
    assert not info.accepted.any()
    base, _ = run(lambda params: params, recombine.mean(), params, sigma=0.0)
    assert found == base


def test_numbers_that_are_read_are_all_that_grows_with_the_population():
    def temporaries(population_size):
        tx = evolve(
            optax.sgd(0.1), evolve_every=1, aux=AUX, recombine=ByWhatItReads(),
            population_size=population_size,
        )  # fmt: skip

        def step(params, state):
            return tx.update(params, state, params, value_fn=with_itself)

        compiled = jax.jit(step).lower(PARAMS, tx.init(PARAMS)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    numbers = 64 - 8
    # Fitness, what is read, and what ranks are made of: some numbers for each member.
    assert temporaries(64) - temporaries(8) < 30 * 4 * numbers


def test_a_rule_that_reads_needs_an_aux():
    with pytest.raises(
        ValueError, match=r"`aux` must be given with a rule that reads it, got None"
    ):
        evolve(optax.sgd(0.1), recombine=ByWhatItReads())
    tx = evolve(optax.sgd(0.1), recombine=ByWhatItReads(), aux=AUX)
    with pytest.raises(ValueError, match="`aux` must be None for `ask`"):
        ask_tell.ask(tx, PARAMS, tx.init(PARAMS), PARAMS)
