"""What a divided population costs: `python -m benchmarks.division`.

A cycle on one CPU device and on eight simulated ones that share the members, side by side in one
process. The devices share the cores of the machine, so it is the CPU time of the process that
tells whether the work was divided: it stays the same if each member is evaluated once, and grows
eightfold if every device evaluates all of them. What cannot be divided are the child's evaluation
and, where the best member is taken, one draw: every device does these.
"""

import itertools
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import cycle, measure, models
from benchmarks.noise import KINDS
from egd_optax import Execution
from xla_options import simulate_devices

DEVICES = 8
simulate_devices(DEVICES)
POPULATIONS = (16, 64)
SAMPLES = 256
ROUNDS = 9


def main() -> None:
    """Measures every case and saves after each."""
    rows = []
    for population, noise in itertools.product(POPULATIONS, KINDS):
        rows.append(measure_division(population, noise))
        measure.save("division", rows)
        print({name: rows[-1][name] for name in ("population", "noise", "cpu_ratio", "ratio")})


def measure_division(population: int, noise: str) -> dict[str, Any]:
    """A row: the cycle on all devices over that on one."""
    problem = models.perceptron(10**6, SAMPLES)
    runs = {
        str(devices): on_devices(devices, problem, population_size=population, noise=KINDS[noise]())
        for devices in (1, DEVICES)
    }
    timings = measure.compare(runs, "1", ROUNDS)[str(DEVICES)]
    about = {"population": population, "noise": noise, "devices": DEVICES, "samples": SAMPLES}
    return {**about, "parameters": models.size(problem.params), **timings}


def on_devices(devices: int, problem: models.Problem, **kwargs: Any) -> measure.Run:
    """A run of one `update` with a cycle, its members divided over some devices."""
    mesh = jax.make_mesh(
        (devices,), ("pop",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    whole = NamedSharding(mesh, PartitionSpec())
    params, batch = jax.device_put((problem.params, problem.batch), whole)
    problem = problem._replace(params=params, batch=batch)
    execution = Execution(population_axis="pop", mesh=mesh)
    return cycle.cycle(problem, execution=execution, **kwargs)


if __name__ == "__main__":
    main()
