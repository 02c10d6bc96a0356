"""Records what a step allocates and moves on the accelerators: `python -m aot`."""

from aot.compiled import CHIPS, PLUGINS, compile_step, missing, params_bytes
from benchmarks import measure

CASES = [
    (memory, population, elites, chips)
    for memory in ("host", "replay", "device")
    for population, elites, chips in ((8, 2, 1), (16, 8, 1), (64, 16, 1), (16, 8, CHIPS))
]


def main() -> None:
    """Compiles every case for every target whose compiler is installed."""
    rows = []
    for target in PLUGINS:
        if reason := missing(target):
            print(f"not run for {target}: {reason}")
            continue
        for case in CASES:
            rows.append(measure_case(target, *case))
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
        "device_over_params": step.device,
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
