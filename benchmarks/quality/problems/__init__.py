"""The problems; one family a file."""

from collections.abc import Callable

from benchmarks.quality.problem import Problem
from benchmarks.quality.problems import (
    controls,
    convection,
    imbalanced,
    label_noise,
    landscapes,
    photonic,
    policies,
    quantized,
    simulators,
    spiking,
)

# By name; each loads its data when it is called.
PROBLEMS: dict[str, Callable[[], Problem]] = {
    build.__name__: build
    for build in (
        quantized.ternary_absmax,
        quantized.ternary_mse,
        quantized.int4_digits,
        quantized.ternary_1d,
        spiking.spiking_digits,
        photonic.sealed_chip_08,
        photonic.sealed_chip_12,
        imbalanced.f1_imbalanced,
        imbalanced.zero_one_imbalanced,
        landscapes.levy_100,
        landscapes.rastrigin_100,
        landscapes.ackley_100,
        convection.pinn_convection,
        label_noise.label_noise,
        controls.friedman,
        controls.diabetes,
        controls.parity,
        controls.rnn_adding,
        simulators.lorenz_96,
    )
}

# Of machines in a simulator, which other methods are for.
POLICIES: dict[str, Callable[[], Problem]] = {
    build.__name__: build
    for build in (
        policies.pendulum,
        policies.delayed_pendulum,
        policies.mountain_car,
        policies.acrobot,
    )
}
