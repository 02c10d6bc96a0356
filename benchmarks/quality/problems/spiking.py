"""A network of spiking neurons, whose forward pass has no useful gradient."""

import jax
import jax.numpy as jnp

from benchmarks.quality.problem import Problem
from benchmarks.quality.problems import layers, samples

STEPS = 8
# Share of its potential that a neuron keeps from one step to the next.
DECAY = 0.8
THRESHOLD = 1.0
# Of the surrogate gradient, per unit of potential.
SLOPE = 5.0


def spiking_digits() -> Problem:
    """Digits, 2,410 parameters: leaky integrate-and-fire neurons in both layers.

    `loss` runs the spikes forward and a surrogate gradient backward. It is its own
    straight-through stand-in: without surrogate every gradient is zero.
    """
    objective = samples.measured(forward, samples.cross_entropy)
    return Problem(
        name="spiking_digits",
        kind="metric",
        init=layers.perceptron(64, 32, 10),
        loss=objective,
        fitness=objective,
        straight_through=objective,
        score=samples.measured(forward, samples.error),
        **samples.digits()._asdict(),
        batch_size=32,
        budget=600_000,
    )


def forward(params: list[layers.Layer], inputs: jax.Array) -> jax.Array:
    """Spikes of each output neuron in 8 steps of constant input, `[n, 10]`.

    The potential decays, adds the input, and loses the threshold with each spike.
    """
    hidden, output = params
    current = layers.apply(hidden, inputs)
    potential = jnp.zeros_like(current)
    output_potential = jnp.zeros([len(inputs), output["bias"].size])
    count = jnp.zeros_like(output_potential)
    for _ in range(STEPS):
        potential, spikes = fire(DECAY * potential + current)
        output_current = layers.apply(output, spikes)
        output_potential, output_spikes = fire(DECAY * output_potential + output_current)
        count += output_spikes
    return count


def fire(potential: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The potential after spikes, and the spikes, 0 or 1."""
    spikes = heaviside(potential - THRESHOLD)
    return potential - THRESHOLD * spikes, spikes


@jax.custom_jvp
def heaviside(excess: jax.Array) -> jax.Array:
    """1 above 0, else 0, with the gradient of a fast sigmoid.

    Zenke and Ganguli 2018, "SuperSpike", https://arxiv.org/abs/1705.11146.
    """
    return (excess > 0).astype(excess.dtype)


@heaviside.defjvp
def _surrogate(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (excess,), (tangent,) = primals, tangents
    return heaviside(excess), tangent / (1 + SLOPE * jnp.abs(excess)) ** 2
