"""The metric preset with one change each: what every part of it is worth."""

from collections.abc import Callable
import copy
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality import ledger
from benchmarks.quality.methods import cycles, operators
from benchmarks.quality.methods.cycles import Carry, Form, Run, Schedule
from benchmarks.quality.methods.gradient import adam, sgd, sgd_settings
from benchmarks.quality.methods.method import Method, Rates, Settings, Static, cosine
from benchmarks.quality.methods.presets import METRIC, decaying, slope
from benchmarks.quality.methods.strategies import centered_ranks
from benchmarks.quality.problem import Params, Problem
from egd_optax import recombine

PREFIX = "ablation_"
# Floor of a leaf's root mean square, as the preset has it.
MIN_SCALE = 1e-3
# Samples of the batch that is accepted on.
GUARD_SAMPLES = 128
# Steps over which a loss is averaged and has to fall, and what it has to fall to.
WINDOW, FALL = 50, 0.99


def log_ranks(fitness: jax.Array) -> jax.Array:
    """Weights of CMA-ES for members in order: Hansen, https://arxiv.org/abs/1604.00772, 2016."""
    place = jnp.arange(1, fitness.size + 1)
    weights = jnp.maximum(jnp.log((fitness.size + 1) / 2) - jnp.log(place), 0)
    return weights / jnp.sum(weights)


def settings_with(**changes: Any) -> Callable[[np.random.Generator], Settings]:
    """Settings of the metric preset, some of them fixed."""
    return lambda rng: {**METRIC.settings(rng), **changes}


def slope_with(**changes: Any) -> Callable[[Rates, Static, int], dict[str, Any]]:
    """Arguments of the metric preset, some of them changed."""
    return lambda rates, static, total: {**slope(rates, static, total), **changes}


def on_sgd_settings(rng: np.random.Generator) -> Settings:
    """Learning rates of SGD; the others as Adam would have them in the same trial."""
    # The learning rate is drawn first.
    return {**METRIC.settings(copy.deepcopy(rng)), **sgd_settings(rng)}


def layer_by_layer(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments of the metric preset whose cycles mutate one layer each, in turn."""
    noise = operators.InTurn(cycles.noise_of(static, relative=True))
    return {**slope(rates, static, total), "noise": noise}


def sigma_by_success(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments of the metric preset whose sigma follows what is better than its parent.

    Better on the batch of the selection or, where a guard decides, on its data.
    """
    noise = operators.BySuccess(
        cycles.noise_of(static, relative=True), accepted=static["accept"] == "improved"
    )
    return {**slope(rates, static, total), "noise": noise}


# Shapes standard normal numbers, a pytree like the parameters, into the noise of a pair: from the
# number of the pair, the numbers, and what earlier cycles left.
Shape = Callable[[jax.Array, Params, Any], Params]


def with_noise(
    run: Run,
    params: Params,
    shape: Shape,
    memory: Any = None,
    remember: Callable[[Any, Params, Any], Any] = lambda memory, step, at: memory,
) -> Params:
    """The metric preset, written out for noise of full rank that no operator can draw.

    To an operator all pairs are alike, and so is each leaf by itself.

    Args:
        run: what the loop is made of.
        params: the initial parameters.
        shape: shapes the noise; the result is scaled to `sigma` and the parameters, leaf by leaf.
        memory: what there is before the first cycle.
        remember: what there is after a cycle, from what was before, the step that the cycle took,
            and its number.
    """
    optimizer = run.optimizer(run.rates)
    pairs, cycles_in_all = run.static["population"] // 2, run.timetable.cycles
    sigma = run.rates["sigma"]
    sigma_at = decaying(sigma, cycles_in_all) if run.static["decay"] else lambda _: sigma

    def idle(at: jax.Array, carry: tuple[Carry, Any]) -> tuple[Carry, Any]:
        return run.step(at, carry[0], optimizer, evolve=False)[0], carry[1]

    def evolving(at: jax.Array, carry: tuple[Carry, Any]) -> tuple[Carry, Any]:
        (parent, state), memory = idle(at, carry)
        leaves, treedef = jax.tree.flatten(parent)
        number = at // run.timetable.evolve_every
        sigma = sigma_at(number)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key_data, impl="threefry2x32"), at)
        value_fn = run.value_fn(at)

        def deviation(pair: jax.Array) -> Params:
            own = jax.random.fold_in(key, pair)
            normal = [
                jax.random.normal(jax.random.fold_in(own, n), leaf.shape)
                for n, leaf in enumerate(leaves)
            ]
            noise = shape(pair, treedef.unflatten(normal), memory)
            return jax.tree.map(
                lambda leaf, by: sigma * jnp.maximum(jnp.sqrt(jnp.mean(leaf**2)), MIN_SCALE) * by,
                parent,
                noise,
            )

        def score(deviation: Params) -> jax.Array:
            return value_fn(optax.tree.add(parent, deviation), jnp.int32(0))

        half = jax.vmap(deviation)(jnp.arange(pairs))
        both = jax.tree.map(lambda leaf: jnp.concatenate([leaf, -leaf]), half)
        weights = centered_ranks(jax.vmap(score)(both))
        weights *= -run.rates["recombine_step"] / jnp.sum(jnp.maximum(weights, 0))
        step = jax.tree.map(lambda by: jnp.tensordot(weights, by, 1), both)
        return (optax.tree.add(parent, step), state), remember(memory, step, number)

    start = (params, optimizer.init(params)), memory
    return cycles.in_periods(run.timetable, idle, evolving, start)[0][0]


def layer_a_pair(run: Run, params: Params) -> Params:
    """Each mirrored pair moves one layer, the next pair the next; noise of full rank."""
    layers, treedef = jax.tree.flatten(params, is_leaf=lambda node: node is not params)

    def shape(pair: jax.Array, normal: Params, memory: Any) -> Params:
        own = treedef.flatten_up_to(normal)
        return treedef.unflatten(
            jax.tree.map(lambda leaf, at=at: (pair % len(layers) == at) * leaf, layer)
            for at, layer in enumerate(own)
        )

    return with_noise(run, params, shape)


def until_spent(problem: Problem, static: Static, budget: int, generation: int) -> Schedule:
    """As many steps as there may be, if no cycle runs; what is spent is counted in the run."""
    steps = ledger.descent(problem).steps_within(budget)
    return Schedule(steps, static["interval"], static["generations"], budget)


def on_plateau(run: Run, params: Params) -> Params:
    """A cycle runs only where the loss has stopped to fall; what that saves goes into steps.

    How many steps there will be is not known: schedules follow what is spent.
    """
    interval, budget = run.timetable.evolve_every, run.timetable.forwards

    def optimizer(spent: jax.Array) -> optax.GradientTransformationExtraArgs:
        sigma = run.rates["sigma"]
        rates = {
            "learning_rate": cosine(run.rates, budget)(spent),
            "sigma": decaying(sigma, budget)(spent) if run.static["decay"] else sigma,
        }
        return run.optimizer({**run.rates, **rates})

    def step(at: jax.Array, carry: Any, *, evolve: bool) -> Any:
        inner, spent, average = carry
        inner, loss = run.step(at, inner, optimizer(spent), evolve=evolve)
        price = run.prices.step + evolve * run.prices.cycle
        # The first average is the first loss.
        average += (loss - average) / jnp.minimum(at + 1, WINDOW)
        return inner, spent + price, average

    idle, evolving = (functools.partial(step, evolve=evolve) for evolve in (False, True))

    def period(carry: Any) -> Any:
        at, inner, history = carry
        inner = lax.fori_loop(at, at + interval - 1, idle, inner)
        plateau = inner[-1] >= FALL * history[0]
        inner = lax.cond(plateau, evolving, idle, at + interval - 1, inner)
        return at + interval, inner, jnp.append(history[1:], inner[-1])

    def goes_on(carry: Any) -> jax.Array:
        return carry[1][1] + run.prices.spent(interval) <= budget

    # The averages after the latest periods, the oldest first; none at first.
    history = jnp.full([WINDOW // interval], jnp.inf)
    inner = (params, optimizer(jnp.int32(0)).init(params)), jnp.int32(0), jnp.zeros([])
    at, inner, _ = lax.while_loop(goes_on, period, (jnp.int32(0), inner, history))
    rest = (budget - inner[1]) // run.prices.step
    ((last, _), _, _) = lax.fori_loop(at, at + rest, idle, inner)
    return last


def constant_adam(rates: Rates, steps: int, key: jax.Array) -> optax.GradientTransformation:
    """Adam at the learning rate that it is given for a step."""
    return optax.adam(rates["learning_rate"])


def constant_slope(rates: Rates, static: Static, total: int) -> dict[str, Any]:
    """Arguments of the metric preset at the sigma that it is given for a step."""
    return slope(rates, {**static, "decay": False}, total)


def _form(**changes: Any) -> Form:
    return Form(**{"base": adam, "options": slope, "antithetic": True, **changes})


def _variant(
    name: str,
    form: Form,
    settings: Callable[[np.random.Generator], Settings] = METRIC.settings,
    **plan: Any,
) -> Method:
    return METRIC._replace(
        name=PREFIX + name,
        settings=settings,
        plan=functools.partial(cycles.plan, form=form, **plan),
    )


AS_IT_IS = _variant("as_it_is", _form())
METHODS = (
    AS_IT_IS,
    _variant("without_antithetic", _form(antithetic=False)),
    _variant(
        "log_rank",
        _form(options=slope_with(recombine=recombine.elite_weights(log_ranks, elite_fraction=1.0))),
    ),
    _variant(
        "elite_mean", _form(options=slope_with(recombine=recombine.mean(elite_fraction=0.25)))
    ),
    _variant("full_rank", _form(), settings_with(noise="full_rank")),
    _variant("generations_4", _form(), settings_with(generations=4, interval=20)),
    _variant("many_samples", _form(), settings_with(samples=128, interval=40)),
    _variant("guard", _form(guard=GUARD_SAMPLES), settings_with(accept="improved")),
    _variant("reset_base", _form(options=slope_with(reset_base=True))),
    _variant("on_sgd", _form(base=sgd), on_sgd_settings),
    _variant("layer_by_layer", _form(options=layer_by_layer)),
    _variant("layer_a_pair", _form(), loop=layer_a_pair),
    # "finite" evaluates the child, which "always" does not.
    _variant("sigma_by_success", _form(options=sigma_by_success), settings_with(accept="finite")),
    _variant(
        "sigma_by_guarded_success",
        _form(options=sigma_by_success, guard=GUARD_SAMPLES),
        settings_with(accept="improved"),
    ),
    _variant(
        "on_plateau",
        _form(base=constant_adam, options=constant_slope),
        schedule=until_spent,
        loop=on_plateau,
    ),
)
