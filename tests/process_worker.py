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

import jax
from jax.experimental import multihost_utils
from layouts import STEPS, Layout, advance, optimizer, restored, start, step_of, train
import numpy as np
import optax
import orbax.checkpoint as ocp

from egd_optax import Execution
from egd_optax.callback import host_value_fn
from xla_options import known, simulate_devices

simulate_devices(2)

DIVIDED = {"data": Layout({"data": 4}), "population": Layout({"pop": 4})}
SHARDED = Layout({"pop": 2, "fsdp": 2})
SAVED, END = 3, 6


def whole(params):
    return multihost_utils.process_allgather(params, tiled=True)


def hashed(params):
    leaves = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def report(folder, name, params, **more):
    params = whole(params)
    values = {"hash": hashed(params), "params": jax.tree.map(np.ndarray.tolist, params), **more}
    file = folder / f"{name}-{jax.process_index()}.json"
    file.with_suffix(".part").write_text(json.dumps(values))
    file.with_suffix(".part").rename(file)  # whoever sees it sees all of it


def noisy(folder, layout):
    """A simulator that never answers twice alike, of members or parameters on two processes."""
    draw, calls = np.random.default_rng(jax.process_index()).normal, []

    def simulate(params, batch):
        calls.append(batch["inputs"].shape)
        hidden = np.tanh(batch["inputs"] @ params["w0"] + params["b0"])
        return np.mean((hidden @ params["w1"] - batch["targets"]) ** 2) + 1e-3 * draw()

    axis = "pop" if "pop" in layout.sizes else None
    tx, value_fn = optimizer(execution=Execution(population_axis=axis)), host_value_fn(simulate)

    def step(params, state, batch):
        grads = jax.tree.map(lambda leaf: 0 * leaf, params)
        updates, state = tx.update(grads, state, params, value_fn=value_fn, batch=batch)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(layout.mesh):
        start_of = start(layout, tx)
        params, state = advance(jax.jit(step, compiler_options=known("hurried")), *start_of)
    fitness = [float(state.info.parent_fitness), float(state.info.best_fitness)]
    due = int(state.info.evaluations) * int(state.cycle)
    found = {"calls": len(calls), "due": due, "fitness": fitness, "shapes": sorted(set(calls))}
    name = f"noisy-{'-'.join(layout.sizes)}"
    report(folder, name, params, **found)


def run(folder, *, resume):
    """Saves a checkpoint on the way to the end, or goes on from there."""
    tx = optimizer(execution=Execution(population_axis="pop"))
    step = jax.jit(step_of(tx), compiler_options=known("hurried"))
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
        for layout in (*DIVIDED.values(), SHARDED):
            noisy(folder, layout)
    run(folder, resume=task == "resume")
    time.sleep(600)  # until it is killed


if __name__ == "__main__":
    main()
