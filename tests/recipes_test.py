"""Presets of published strategies: their steps are those of the papers' formulas, in NumPy.

The noise of a step is read from its members, (member - parent) / sigma.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import ask_tell, evolve, presets

STEPS = 4
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.zeros(3)}
INPUTS = jax.random.normal(jax.random.key(3), (16, 4))


def loss(params):
    hidden = jnp.tanh(INPUTS @ params["w"] + params["b"])
    return jnp.mean((hidden - jnp.sin(2 * INPUTS[:, :3])) ** 2)


class AdamOfPaper:
    """Kingma and Ba, algorithm 1."""

    def __init__(self, rate):
        self.rate, self.count, self.m, self.v = rate, 0, 0.0, 0.0

    def step(self, gradient):
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.count), self.v / (1 - 0.999**self.count)
        return -self.rate * m / (np.sqrt(v) + 1e-8)


def openai_es(sigma=0.1, rate=0.05, decay=0.02):
    """Salimans et al., algorithm 1, with ranks from -1/2 to 1/2, L2 and Adam."""
    adam = AdamOfPaper(rate)

    def step(params, noise, fitness, of_parent):
        ranks = np.argsort(np.argsort(-fitness)) / (fitness.size - 1) - 0.5
        gradient = -(ranks @ noise) / (fitness.size * sigma)
        return adam.step(gradient + decay * params)

    kwargs = {"sigma": sigma, "population_size": 16, "weight_decay": decay}
    return presets.openai_es(rate, **kwargs), sigma, step


def mezo(pairs, epsilon=0.01, rate=0.1):
    """Malladi et al., definition 1 and algorithm 1."""

    def step(params, noise, fitness, of_parent):
        up, down, direction = fitness[::2], fitness[1::2], noise[::2]
        return -rate * np.mean((up - down)[:, None] / (2 * epsilon) * direction, axis=0)

    return presets.mezo(rate, epsilon=epsilon, pairs=pairs), epsilon, step


def eggroll(rank, sigma=0.1, rate=0.05):
    """`convert_fitnesses` and the update of the authors' program, with SGD."""

    def step(params, noise, fitness, of_parent):
        scores = (np.mean(fitness) - fitness) / np.sqrt(np.var(fitness) + 1e-5)
        return rate * np.sqrt(fitness.size) * np.mean(scores[:, None] * sigma * noise, axis=0)

    return presets.eggroll(rate, sigma=sigma, population_size=16, rank=rank), sigma, step


def es_at_scale(sigma=0.05, rate=0.02):
    """Qiu et al., algorithm 2: standard scores of the rewards, and no division by sigma."""

    def step(params, noise, fitness, of_parent):
        scores = (np.mean(fitness) - fitness) / (np.std(fitness) + 1e-8)
        return rate * np.mean(scores[:, None] * noise, axis=0)

    return presets.es_at_scale(rate, sigma=sigma, population_size=10), sigma, step


def fzoo(epsilon=0.01, rate=0.05):
    """Dang et al., algorithm 1."""

    def step(params, noise, fitness, of_parent):
        np.testing.assert_allclose(np.abs(noise), 1, rtol=1e-3)
        gradient = np.mean((fitness - of_parent)[:, None] / epsilon * noise, axis=0)
        return -rate * gradient / np.std(fitness, ddof=1)

    return presets.fzoo(rate, epsilon=epsilon, population_size=6), epsilon, step


RECIPES = {
    "openai_es": openai_es,
    "mezo": lambda: mezo(1),
    "mezo of three pairs": lambda: mezo(3),
    "eggroll": lambda: eggroll(1),
    "eggroll of rank 2": lambda: eggroll(2),
    "es_at_scale": es_at_scale,
    "fzoo": fzoo,
}


def flat(tree):
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_steps_as_its_paper_says(name):
    settings, sigma, reference = RECIPES[name]()
    tx = evolve(optax.set_to_zero(), **settings)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(STEPS):
        asked, _ = ask_tell.ask(tx, None, state, params)
        numbers = range(asked.ticket.size)
        members = [ask_tell.member(asked.ticket, asked.parent, at) for at in numbers]
        fitness = np.array([loss(member) for member in members], np.float64)
        noise = np.stack([flat(member) - flat(params) for member in members]) / sigma
        if not settings.get("antithetic"):  # the parent is the first
            of_parent, fitness, noise = fitness[0], fitness[1:], noise[1:]
        else:
            of_parent = None
        expected = reference(flat(params), noise, fitness, of_parent)
        updates, state = tx.update(None, state, params, value_fn=loss)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(flat(updates), expected, rtol=2e-3, atol=2e-3 * scale)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_the_loss_smaller(name):
    tx = evolve(optax.set_to_zero(), **RECIPES[name]()[0])

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            updates, state = tx.update(None, state, params, value_fn=loss)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 60, step, (params, tx.init(params)))[0]

    assert loss(train(PARAMS)) < 0.8 * loss(PARAMS)


def test_members_of_one_loss_say_nothing():
    """The spread of the losses is zero, and so is the step."""
    for name, recipe in RECIPES.items():
        settings = recipe()[0]
        if name == "openai_es":
            settings = presets.openai_es(population_size=8, weight_decay=0.0)
        tx = evolve(optax.set_to_zero(), **settings)
        updates, _ = tx.update(None, tx.init(PARAMS), PARAMS, value_fn=lambda params: 1.0)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: presets.mezo(epsilon=0.0),
        lambda: presets.fzoo(0.1, epsilon=-1.0),
        lambda: presets.es_at_scale(0.0),
        lambda: presets.openai_es(sigma=0.0),
        lambda: presets.eggroll(0.1, sigma=float("nan")),
    ],
)
def test_a_size_that_is_not_above_zero_is_named(wrong):
    with pytest.raises(ValueError, match="`(epsilon|sigma|learning_rate)` must be"):
        wrong()
