"""The sealed chip of the quality benchmark: what of its errors is told, and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality.problems import controls, photonic

pytestmark = pytest.mark.long

ERROR = 0.8


def gradients(problem, seed=0):
    """Value and gradient of everything that can be descended on, on one batch."""
    params = problem.init(jax.random.key(seed))
    batch = jax.tree.map(lambda leaf: leaf[:64], problem.train)
    objectives = {
        "model": problem.loss,
        "chip": problem.fitness,
        "physics_aware": problem.straight_through,
        "read_out": problem.read_out,
    }
    return {name: jax.value_and_grad(f)(params, batch) for name, f in objectives.items()}


def cosine(one, other):
    flat, against = (np.concatenate([leaf.ravel() for leaf in tree]) for tree in (one, other))
    return flat @ against / np.linalg.norm(flat) / np.linalg.norm(against)


def test_without_errors_the_chip_is_its_model():
    (value, slope), *others = gradients(photonic.chip("exact", 0.0)).values()
    for found, gradient in others:
        np.testing.assert_allclose(found, value, rtol=1e-5)
        for leaf, expected in zip(gradient, slope, strict=True):
            np.testing.assert_allclose(leaf, expected, atol=1e-6)


def test_what_is_measured_is_the_chip_and_what_is_differentiated_is_not():
    found = gradients(photonic.chip("chip", ERROR))
    for name in ("physics_aware", "read_out"):
        np.testing.assert_allclose(found[name][0], found["chip"][0], rtol=1e-5)
    assert abs(found["model"][0] - found["chip"][0]) > 1e-2
    # The more is measured, the nearer is the gradient to that of the chip.
    nearness = [cosine(found[name][1], found["chip"][1]) for name in ("read_out", "physics_aware")]
    assert 0.99 > nearness[0] > nearness[1] > 0


@pytest.mark.parametrize("seed", range(3))
def test_errors_hide_nothing_from_evolution(seed):
    # Whoever only sees the fitness finds on one chip what it finds on another, shifted.
    exact, chip = (photonic.chip("chip", error) for error in (0.0, ERROR))
    rng = np.random.default_rng(controls.SEED)
    params = exact.init(jax.random.key(seed))
    shifted = [leaf - ERROR * rng.normal(size=leaf.shape) for leaf in params]
    batch = exact.train
    np.testing.assert_allclose(chip.score(shifted, batch), exact.score(params, batch), atol=3e-3)


def test_a_converter_that_saturates_lets_no_gradient_through():
    currents = jnp.array([-3.0, -0.5, 0.2, 3.0])
    read = lambda current: photonic.passed_through(current, photonic.convert(current))  # noqa: E731
    np.testing.assert_allclose(
        read(currents), [-1, -0.5, 0.2, 1], atol=1 / 2 ** (photonic.BITS - 1)
    )
    assert jnp.array_equal(jax.vmap(jax.grad(read))(currents), jnp.array([0.0, 1.0, 1.0, 0.0]))
