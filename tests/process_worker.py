"""One of two processes that train together; run by `processes_test.py`.

python process_worker.py PORT PROCESS FOLDER (train | resume)
"""

import hashlib
import json
import os
from pathlib import Path
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
from jax.experimental import multihost_utils
from layouts import FAST, STEPS, Layout, advance, optimizer, restored, start, step_of, train
import numpy as np
import orbax.checkpoint as ocp

from egd_optax import Execution

DIVIDED = {"data": Layout({"data": 4}), "population": Layout({"pop": 4})}
SHARDED = Layout({"pop": 2, "fsdp": 2})
SAVED, END = 3, 6


def whole(params):
    return multihost_utils.process_allgather(params, tiled=True)


def hashed(params):
    leaves = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def report(folder, name, params):
    params = whole(params)
    values = {"hash": hashed(params), "params": jax.tree.map(np.ndarray.tolist, params)}
    file = folder / f"{name}-{jax.process_index()}.json"
    file.with_suffix(".part").write_text(json.dumps(values))
    file.with_suffix(".part").rename(file)  # whoever sees it sees all of it


def run(folder, *, resume):
    """Saves a checkpoint on the way to the end, or goes on from there."""
    tx = optimizer(execution=Execution(population_axis="pop"))
    step = jax.jit(step_of(tx), compiler_options=FAST)
    with jax.set_mesh(SHARDED.mesh):
        params, state, batch = start(SHARDED, tx)
        if resume:
            params, state = restored(folder / "checkpoint", SHARDED, tx)
        for at in range(SAVED if resume else 0, END):
            params, state = advance(step, params, state, batch, steps=1)
            if at + 1 == STEPS:
                report(folder, "sharded", params)
            if at + 1 == SAVED:
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(folder / "checkpoint", {"params": params, "state": state})
    report(folder, "resumed" if resume else "uninterrupted", params)


def main():
    port, process, folder, task = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    folder = Path(folder)
    if task == "train":
        for name, layout in DIVIDED.items():
            report(folder, name, train(layout)[0])
    run(folder, resume=task == "resume")
    time.sleep(600)  # until it is killed


if __name__ == "__main__":
    main()
