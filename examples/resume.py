"""A run that is killed goes on: with the same bits on the same mesh, and on another mesh.

    python -m pip install orbax-checkpoint
    python -m examples.resume

Parameters and moments are sharded over all devices (FSDP), and Orbax saves them as the run goes. A
process on 8 devices is killed while it saves. Another one goes on from the last whole checkpoint,
and one on 4 devices from a copy of it. The last lines compare both with a run that nobody killed.
The devices are simulated. `python -m examples.resume FOLDER` trains on the devices that there are,
from the last checkpoint in that folder on.
"""

import argparse
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp

from egd_optax import evolve
from egd_optax.checkpoint import abstract_state

STEPS, SAVE_EVERY, KILLED_AT = 12, 2, 8
INPUTS, WIDTH, OUTPUTS = 64, 512, 8
PATIENCE = 300  # seconds for a process
TX = evolve(optax.adam(1e-2), evolve_every=5, sigma=0.05)


def init() -> optax.Params:
    """The parameters of a network with one hidden layer."""
    keys = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(keys[0], (INPUTS, WIDTH)) / INPUTS**0.5,
        "bias": jnp.zeros(WIDTH),
        "out": jax.random.normal(keys[1], (WIDTH, OUTPUTS)) / WIDTH**0.5,
    }


def loss(params: optax.Params, batch: dict[str, Any]) -> jax.Array:
    """The mean squared error."""
    hidden = jnp.tanh(batch["inputs"] @ params["hidden"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch["targets"]) ** 2)


def batch_of(number: int) -> dict[str, Any]:
    """The samples of a step: they depend on its number alone, so they need not be saved."""
    inputs = np.random.default_rng(number).normal(size=(64, INPUTS)).astype(np.float32)
    return {"inputs": inputs, "targets": np.sin(inputs[:, :OUTPUTS])}


def step(params: optax.Params, state: Any, batch: dict[str, Any]) -> Any:
    """A step of gradient descent, with a cycle when one is due."""
    grads = jax.grad(loss)(params, batch)
    updates, state = TX.update(grads, state, params, value_fn=loss, batch=batch)
    return optax.apply_updates(params, updates), state


def template() -> Any:
    """Parameters and state on all devices, without their arrays."""
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    params = jax.tree.map(lambda leaf: leaf.update(sharding=rows), jax.eval_shape(init))
    return params, abstract_state(TX, params)


def start() -> Any:
    """Parameters and state before the first step."""
    params = init()
    return params, TX.init(params)


def train(folder: Path, killed_at: int | None = None) -> optax.Params:
    """Trains from the last checkpoint in a folder on, or from the start if there is none."""
    like = template()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    # XLA would else choose how the results of a step are sharded.
    stepped = jax.jit(step, out_shardings=shardings)
    options = ocp.CheckpointManagerOptions(save_interval_steps=SAVE_EVERY, max_to_keep=2)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        last = manager.latest_step()
        if last is None:
            last, run = 0, jax.jit(start, out_shardings=shardings)()
        else:
            run = manager.restore(last, args=ocp.args.StandardRestore(like))
        print(f"{jax.device_count()} devices, from step {last} on")
        for number in range(last + 1, STEPS + 1):
            # One at a time: XLA:CPU can hang when several steps that communicate are under way.
            run = jax.block_until_ready(stepped(*run, batch_of(number)))
            manager.save(number, args=ocp.args.StandardSave(run))  # in the background
            if number == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
    return run[0]


def launch(folder: Path, devices: int, *more: str) -> int:
    """Trains in a process with so many devices; returns its exit status."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "examples.resume", str(folder), *more]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.run(command, env=env, timeout=PATIENCE).returncode


def demonstrate(folder: Path) -> dict[str, float]:
    """The exit status of the killed run, and how far the others end from the uninterrupted one."""
    whole, same, other = (folder / name for name in ("whole", "same", "other"))
    launch(whole, 8)
    status = launch(same, 8, "--killed-at", str(KILLED_AT))
    shutil.copytree(same, other)
    launch(same, 8)
    launch(other, 4)
    expected, *found = (dict(np.load(run / "params.npz")) for run in (whole, same, other))
    same_mesh, other_mesh = (
        max(float(np.max(np.abs(params[name] - leaf))) for name, leaf in expected.items())
        for params in found
    )
    return {"exit status": status, "same mesh": same_mesh, "other mesh": other_mesh}


def main() -> None:
    """Trains in a folder, or shows what happens to a run that is killed."""
    parser = argparse.ArgumentParser(prog="python -m examples.resume", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="of the checkpoints")
    parser.add_argument("--killed-at", type=int, metavar="STEP", help="be killed in this step")
    args = parser.parse_args()
    if args.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in demonstrate(Path(folder)).items():
                print(f"{name}: {value}")
        return
    params = train(args.folder.absolute(), args.killed_at)
    np.savez(args.folder / "params.npz", **jax.device_get(params))


if __name__ == "__main__":
    main()
