"""One training run, to be repeated on other devices in other layouts."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp

from egd_optax import Execution, evolve
from egd_optax.checkpoint import abstract_state
from xla_options import known

STEPS = 4
PLAIN = Execution()
# NumPy's, for no backend may have started where `jax.distributed` is still to be.
INPUTS = np.random.default_rng(8).normal(size=(16, 8)).astype(np.float32)
BATCH = {"inputs": INPUTS, "targets": np.sin(INPUTS[:, :4])}


def initial_params():
    draw = np.random.default_rng(5).normal
    return {
        "w0": draw(0, 1 / 3, (8, 32)).astype(np.float32),
        "b0": np.zeros(32, np.float32),
        "w1": draw(0, 1 / 6, (32, 4)).astype(np.float32),
    }


def loss(params, batch):
    hidden = jnp.tanh(batch["inputs"] @ params["w0"] + params["b0"])
    return jnp.mean((hidden @ params["w1"] - batch["targets"]) ** 2)


class Layout(NamedTuple):
    """Sizes of the axes of a mesh by name; "pop" divides members, "fsdp" shards parameters."""

    sizes: dict[str, int]
    axis_type: AxisType = AxisType.Auto

    @property
    def mesh(self):
        count = np.prod(list(self.sizes.values()))
        kinds = (self.axis_type,) * len(self.sizes)
        devices = jax.devices()[:count]
        return jax.make_mesh(
            tuple(self.sizes.values()), tuple(self.sizes), devices=devices, axis_types=kinds
        )

    @property
    def params(self):
        matrix = ("fsdp", None) if "fsdp" in self.sizes else ()
        return {"w0": PartitionSpec(*matrix), "b0": PartitionSpec(), "w1": PartitionSpec(*matrix)}

    @property
    def batch(self):
        return PartitionSpec("data") if "data" in self.sizes else PartitionSpec()

    def place(self, tree, specs):
        mesh = self.mesh
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.device_put(tree, shardings)


def optimizer(**kwargs):
    settings = {"evolve_every": 2, "population_size": 9, "sigma": 0.2, "key": 3, **kwargs}
    return evolve(optax.sgd(0.125), **settings)


gradient = jax.grad(loss)


def step_of(tx, gradient=gradient):
    def step(params, state, batch):
        grads = gradient(params, batch)
        updates, state = tx.update(grads, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def advance(step, params, state, batch, steps=STEPS):
    for _ in range(steps):
        # One at a time: XLA:CPU runs out of threads where steps that communicate pile up.
        params, state = jax.block_until_ready(step(params, state, batch))
    return params, state


def start(layout, tx):
    """Parameters, state and batch in their layout."""
    params = layout.place(initial_params(), layout.params)
    return params, tx.init(params), layout.place(BATCH, layout.batch)


def restored(folder, layout, tx):
    """Parameters and state from a checkpoint, in a layout that need not be the one it had."""
    params = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(layout.mesh, layout.params[name])
        )
        for name, leaf in initial_params().items()
    }
    target = {"params": params, "state": abstract_state(tx, params)}
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(folder, target)
    return found["params"], found["state"]


def train(layout, steps=STEPS, exact=False, execution=PLAIN, **kwargs):
    """Parameters and state after some steps of one `jax.jit` program for the whole mesh.

    With `exact` no gradient is computed, which XLA may divide and round as it likes, and the
    program is compiled as for a user.
    """
    axis = "pop" if "pop" in layout.sizes else None
    tx = optimizer(execution=dataclasses.replace(execution, population_axis=axis), **kwargs)
    step = jax.jit(
        step_of(tx, (lambda params, batch: params) if exact else gradient),
        compiler_options=None if exact else known("hurried"),
    )
    with jax.set_mesh(layout.mesh):
        return advance(step, *start(layout, tx), steps)
