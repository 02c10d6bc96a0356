"""The options of XLA that tests, benchmarks and commands ask for, where this XLA knows them.

XLA adds and drops options with every release. One that it does not know is an error of the
compilation, and as a flag in the environment it aborts the process. Hence XLA is asked first.

    python -m xla_options hurried python -m pytest

runs a command with a set of them in XLA_FLAGS. As options of `jax.jit` or of a compilation:

    jax.jit(fn, compiler_options=xla_options.known("hurried"))
"""

from collections.abc import Mapping
from concurrent import futures
import functools
import os
import sys
from typing import Any

SETS: Mapping[str, Mapping[str, Any]] = {
    # Compiles fastest, for what is compared up to rounding. What is compared bit for bit, or read,
    # is compiled as for a user. jaxlib 0.10.2 knows both, 0.11.2 and 0.12.0.1 only the first.
    "hurried": {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
    # The program of a user, in code that is not optimised: to read, or to ask for its memory.
    "read": {"xla_backend_optimization_level": 0},
    # Compiles in half the time programs that run about as fast: for what runs a few times.
    "brief": {"xla_backend_optimization_level": 1},
    # Fusions of small products, which are slow where there are few rows, would favour whatever has
    # more. jaxlib 0.10.2, 0.11.2 and 0.12.0.1 know it.
    "plain_products": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # Autotuning would time kernels on a GPU, where there is none. All three know it.
    "untuned": {"xla_gpu_autotune_level": 0},
}


def known(name: str) -> dict[str, Any]:
    """The options of a set that this XLA knows; starts a backend, once.

    Args:
        name: a key of `SETS`.
    """
    return {option: value for option, value in SETS[name].items() if _is_known(option, value)}


def flags(name: str) -> str:
    """The same as XLA_FLAGS has them."""
    return " ".join(f"--{option}={_written(value)}" for option, value in known(name).items())


def simulate_devices(count: int) -> None:
    """Lets the CPU be so many devices, in this process and those that it starts.

    Takes effect if no backend has started. Other flags stay, the last count of devices counts.
    All releases know this flag.
    """
    _add_flags(f"--xla_force_host_platform_device_count={count}")


@functools.cache
def _is_known(option: str, value: Any) -> bool:
    # In a thread of its own: a mesh or a trace of whoever asks does not reach it.
    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_compiles, {option: value}).result()


def _compiles(options: dict[str, Any]) -> bool:
    import jax

    # For a CPU, of which there is always one: options for others are known to it too.
    device = jax.local_devices(backend="cpu")[0]
    with jax.default_device(device):
        lowered = jax.jit(lambda: 0).lower()
    try:
        lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _add_flags(more: str) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()


def main() -> None:
    """Becomes the command, with the flags of a set added."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # leaves an accelerator to the command
    name, *command = sys.argv[1:]
    _add_flags(flags(name))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
