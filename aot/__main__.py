"""Records what a step allocates and moves on the accelerators: `python -m aot`."""

import itertools

from aot.compiled import CASES, PLUGINS, compile_step, missing, params_bytes
from benchmarks import measure

MEMORY = ("host", "replay", "device")


def main() -> None:
    """Compiles every case for every target whose compiler is installed."""
    rows = []
    for target in PLUGINS:
        if reason := missing(target):
            print(f"not run for {target}: {reason}")
            continue
        for memory, case in itertools.product(MEMORY, CASES):
            rows.append(measure_case(target, memory, *case))
            measure.save("aot", rows)
            print(rows[-1])


def measure_case(
    target: str, memory: str, population: int, elites: int, chips: int
) -> dict[str, object]:
    """Memory of one chip, and the bytes of all copies in the program, over its parameters."""
    step = compile_step(target, memory, population, elites, chips)
    idle = compile_step(target, memory, population, elites, chips, evolve=False)
    copies = step.program.host_copies()
    return {
        "target": target,
        "memory": memory,
        "population": population,
        "elites": elites,
        "chips": chips,
        "params_bytes": params_bytes(chips),
        "device_over_params": step.device,
        "analysed_over_params": step.analysed,
        "device_over_params_evolve_false": idle.device,
        "host_over_params": step.host,
        **{
            way.replace(" ", "_"): sum(site.size for site in copies if site.way == way)
            / params_bytes(chips)
            for way in ("to host", "to device", "on host")
        },
    }


if __name__ == "__main__":
    main()
