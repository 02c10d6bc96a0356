"""A photonic chip that is sealed: what it puts out can be read, what happens inside cannot.

A weight is a Mach-Zehnder interferometer: of its two outputs one adds light to a sum and the other
takes it away, together the cosine of its phase. Photodetectors add up the weights of a neuron
("broadcast and weight", Tait et al. 2017, https://doi.org/10.1038/s41598-017-07754-z, where rings
are the weights). Every phase is off by an error of fabrication that nobody knows, the same in all
runs. A converter of few bits, which saturates, follows every layer.
"""

from collections.abc import Sequence
import itertools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality.problem import Params, Problem
from benchmarks.quality.problems import controls, samples

WIDTHS = (64, 32, 10)
BITS = 8
# Electronic gains: between the layers, and from what the chip puts out to logits.
HIDDEN_GAIN, LOGIT_GAIN = 2.0, 10.0


def sealed_chip_08() -> Problem:
    """Digits, 2,368 phases with errors of a standard deviation of 0.8 rad."""
    return chip("sealed_chip_08", phase_error=0.8)


def sealed_chip_12() -> Problem:
    """The same with errors of 1.2 rad: of the mean slope of a weight a half is left."""
    return chip("sealed_chip_12", phase_error=1.2)


def chip(name: str, phase_error: float) -> Problem:
    """Digits on a chip whose errors are drawn once.

    What can be differentiated is the chip as it was drawn up, without errors. Alone it is `loss`.
    `straight_through` is physics-aware training (Wright et al. 2022,
    https://doi.org/10.1038/s41586-021-04223-6): the chip runs forward, the model backward, from
    the logits that were measured. `read_out` is the same where what each layer puts out is
    measured as well, so that the model goes astray within a layer at most.
    """
    rng = np.random.default_rng(controls.SEED)
    shapes = list(itertools.pairwise(WIDTHS))
    errors = [jnp.asarray(phase_error * rng.normal(size=shape), jnp.float32) for shape in shapes]

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        pairs = zip(keys, shapes, strict=True)
        return [jax.random.uniform(k, shape, maxval=2 * math.pi) for k, shape in pairs]

    def measured(params: Params, inputs: jax.Array) -> list[jax.Array]:
        return run([p + e for p, e in zip(params, errors, strict=True)], inputs)

    def model(params: Params, inputs: jax.Array) -> jax.Array:
        return LOGIT_GAIN * run(params, inputs)[-1]

    def device(params: Params, inputs: jax.Array) -> jax.Array:
        return LOGIT_GAIN * measured(params, inputs)[-1]

    def physics_aware(params: Params, inputs: jax.Array) -> jax.Array:
        last = measured(params, inputs)[-1]
        return LOGIT_GAIN * run(params, inputs, [None] * (len(shapes) - 1) + [last])[-1]

    def read_out(params: Params, inputs: jax.Array) -> jax.Array:
        return LOGIT_GAIN * run(params, inputs, measured(params, inputs))[-1]

    return Problem(
        name=name,
        kind="metric",
        init=init,
        loss=samples.measured(model, samples.cross_entropy),
        fitness=samples.measured(device, samples.cross_entropy),
        straight_through=samples.measured(physics_aware, samples.cross_entropy),
        score=samples.measured(device, samples.error),
        **samples.digits()._asdict(),
        batch_size=32,
        budget=600_000,
        read_out=samples.measured(read_out, samples.cross_entropy),
    )


def run(
    phases: Params, inputs: jax.Array, readings: Sequence[jax.Array | None] | None = None
) -> list[jax.Array]:
    """What the converter behind each layer puts out, `[n, outputs]` each, within -1 and 1.

    Args:
        phases: of each layer, `[inputs, outputs]`, in rad.
        inputs: `[n, inputs]`.
        readings: what was measured behind each layer, None where nothing was. It stands for what
            is computed there, also in deciding which converters let no gradient through.
    """
    outputs = []
    for of_layer, reading in zip(phases, readings or [None] * len(phases), strict=True):
        current = inputs @ jnp.cos(of_layer) / math.sqrt(len(of_layer))
        converted = convert(current)
        outputs.append(passed_through(current, converted if reading is None else reading))
        inputs = HIDDEN_GAIN * jax.nn.relu(outputs[-1])
    return outputs


def convert(current: jax.Array) -> jax.Array:
    """The nearest of the values that a converter of few bits has, the last where it saturates."""
    levels = 2 ** (BITS - 1) - 1
    return jnp.round(levels * jnp.clip(current, -1, 1)) / levels


def passed_through(current: jax.Array, converted: jax.Array) -> jax.Array:
    """What was converted, with the gradient of the current; none where the converter saturates."""
    linear = jnp.where(jnp.abs(converted) < 1, current, lax.stop_gradient(current))
    return linear + lax.stop_gradient(converted - linear)
