# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many devices
#
# The same training in four layouts: samples, members and parameters divided over devices, and all
# three at once. The step is written once, for a single device; where its arrays are placed decides
# the rest. The parameters come out the same.
#
# The eight devices here are simulated on the CPU. They take turns on its cores, so nothing gets
# faster, but the program is the one that eight GPUs or TPU chips would run.

# %%
import os

# Read when jax starts, so before it is imported. On a machine with accelerators leave both out.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from egd_optax import Execution, evolve, is_due, noise

jax.devices()

# %% [markdown]
# The figures are transparent, in tones that can be read on white and on black.

# %%
plt.style.use("style.mplstyle")  # the file beside this notebook
GREY, BLUE, ORANGE = "#777777", "#1f88c9", "#d55e00"

# %% [markdown]
# ## A network, and a step
#
# Two matrices for scikit-learn's digits. Gradients come from 1024 images, fitness from 512 others.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = np.float32(images / 16), np.int32(labels)
TRAIN, HELD_BACK = (images[:1024], labels[:1024]), (images[1024:1536], labels[1024:1536])

rng = np.random.default_rng(0)
PARAMS = {
    "hidden": np.float32(rng.normal(size=(64, 32)) / 8),
    "out": np.float32(rng.normal(size=(32, 10)) / 6),
}


def loss(params, images, labels):
    """Mean cross-entropy."""
    logits = jnp.tanh(images @ params["hidden"]) @ params["out"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


# %% [markdown]
# Every tenth step runs a cycle of 16 members, with noise of low rank, which is cheap to draw.
# `Execution` says how a cycle runs, and its `population_axis` names the axis to divide them over.
# Nothing else in the step knows of devices.


# %%
def make_step(population_axis):
    """An optimizer, and its jitted step."""
    tx = evolve(
        optax.adam(1e-2),
        evolve_every=10,
        population_size=16,
        noise=noise.low_rank(),
        execution=Execution(population_axis=population_axis),
    )

    @jax.jit
    def step(params, state, train, held_back):
        grads = jax.grad(loss)(params, *train)

        def value_fn(params):
            return loss(params, *held_back)

        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return tx, step


# %% [markdown]
# ## Four layouts
#
# A mesh is a grid of devices, and its axes have names. Here is what these will stand for.
#
# - "data": other samples on every device.
# - "pop": in a cycle, other members on every device. Members are compared, so they must see the
#   same samples: fitness samples are not divided over this axis, those for gradients are.
# - "fsdp" (fully sharded data parallel): other samples, and other rows of every matrix.

# %%
LAYOUTS = {
    "data": {"data": 8},
    "population": {"pop": 4, "data": 2},
    "fsdp": {"data": 2, "fsdp": 4},
    "all three": {"pop": 2, "data": 2, "fsdp": 2},
}


def mesh_of(sizes):
    """The mesh with so many devices along every axis."""
    automatic = (AxisType.Auto,) * len(sizes)  # XLA divides the work as the arrays are divided
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=automatic)


def place(mesh):
    """Parameters, samples for gradients and samples for fitness, on their devices."""

    def put(tree, *axes):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    rows = "fsdp" if "fsdp" in mesh.axis_names else None
    all_but_pop = tuple(axis for axis in mesh.axis_names if axis != "pop")
    return put(PARAMS, rows), put(TRAIN, mesh.axis_names), put(HELD_BACK, all_but_pop)


# %% [markdown]
# Drawn for the first matrix, `[64, 32]`: which of the devices 0 to 7 hold which of its rows.

# %%
for name, sizes in LAYOUTS.items():
    params, _, _ = place(mesh_of(sizes))
    print(f"{name}: {sizes}")
    jax.debug.visualize_array_sharding(params["hidden"], use_color=False)

# %% [markdown]
# ## Training
#
# The loop is that of one device. `jax.set_mesh` tells the step which mesh `population_axis` is of.
# Real devices need not wait for a step before they are given the next. Simulated ones share a few
# threads, and with several steps under way they can block each other.


# %%
def fit(sizes, steps=60):
    """Trains in a layout; returns the parameters and the info of each cycle."""
    mesh = mesh_of(sizes)
    params, train, held_back = place(mesh)
    tx, step = make_step("pop" if "pop" in sizes else None)
    infos = []
    with jax.set_mesh(mesh):
        state = tx.init(params)
        for count in range(1, steps + 1):
            params, state = jax.block_until_ready(step(params, state, train, held_back))
            if is_due(count, 10):
                infos.append(state.info)
    return jax.device_get((params, infos))


runs = {name: fit(sizes) for name, sizes in LAYOUTS.items()}

# %% [markdown]
# ## The same parameters
#
# Noise depends on the key, the cycle, the member and the tensor, never on a device. What is left
# are sums over samples or rows, which devices add up in another order: a last digit may differ.


# %%
def difference(run, other):
    """The largest difference of any number, in parameters and in the infos of all cycles."""
    pairs = (
        zip(*map(jax.tree.leaves, parts), strict=True) for parts in zip(run, other, strict=True)
    )
    return [max(np.max(abs(np.float64(a) - b)) for a, b in leaves) for leaves in pairs]


print("            parameters   state.info   jumps")
for name, run in runs.items():
    in_params, in_infos = difference(run, runs["data"])
    jumps = sum(bool(info.accepted) for info in run[1])
    print(f"{name:12}{in_params:10.0e}{in_infos:13.0e}{jumps:8} of {len(run[1])}")
    assert in_params < 1e-5
    assert in_infos < 1e-5

# %% [markdown]
# `state.info` tells the story of each cycle: in all layouts members get the same fitness, and the
# run jumps to the same place. (A fitness that counts errors can turn a last digit into another
# elite. Runs in two layouts are then equally good, and need not be equal.)
#
# ## Divided work
#
# Simulated devices share the cores, so time proves nothing here. XLA's count of the operations in
# the program of one device does. It counts what is in a loop once; `candidate_batch_size` puts all
# members of a device into one batch, so that there is no loop.


# %%
def operations(devices, population_size=64):
    """Of each device, in a cycle whose members so many devices divide."""
    mesh = jax.make_mesh(
        (devices,), ("pop",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    params, _, held_back = place(mesh)
    tx = evolve(
        optax.set_to_zero(),  # no step, only the cycle
        population_size=population_size,
        noise=noise.low_rank(),
        execution=Execution(population_axis="pop", candidate_batch_size=population_size // devices),
    )

    @jax.jit
    def cycle(params, state, images, labels):
        grads = params  # of the right shape; the base ignores them
        return tx.update(
            grads, state, params, value_fn=loss, images=images, labels=labels, evolve=True
        )

    with jax.set_mesh(mesh):
        compiled = cycle.lower(params, tx.init(params), *held_back).compile()
    return compiled.cost_analysis()["flops"]


one_forward = jax.jit(loss).lower(PARAMS, *HELD_BACK).compile().cost_analysis()["flops"]
counts = np.array([1, 4, 8])
forwards = np.array([operations(devices) for devices in counts]) / one_forward
for devices, count in zip(counts, forwards, strict=True):
    print(f"devices: {devices}, forward passes of each: {count:4.1f}")

# %% [markdown]
# 64 members over 8 devices are 8 for each, and all evaluate the child. The rest is noise: it is
# drawn where it is used, so nobody sends a member.

# %%
_, (fitness_axes, work_axes) = plt.subplots(1, 2, figsize=(10, 3.6))
markers = zip(("o", "s", "^", "."), (17, 13, 9, 6), (GREY, BLUE, ORANGE, GREY), strict=True)
for (name, (_, infos)), (marker, size, color) in zip(runs.items(), markers, strict=True):
    found = [info.best_fitness - info.parent_fitness for info in infos]
    style = {"markersize": size, "color": color, "markerfacecolor": "none"}
    fitness_axes.plot(10 * np.arange(1, 7), found, marker, label=name, **style)
fitness_axes.axhline(0, color=GREY, linewidth=0.8)
fitness_axes.set(xlabel="step", ylabel="best member, less the parent", title="fitness in a cycle")
fitness_axes.legend()

work_axes.plot(counts, forwards[0] / counts, ":", color=GREY, label="an equal share of all")
work_axes.plot(counts, forwards, "o-", color=BLUE, label="counted")
work_axes.set_xscale("log", base=2)
work_axes.set_xticks(counts, counts)
work_axes.set(
    ylim=(0, None), xlabel="devices", ylabel="forward passes", title="work of each device"
)
work_axes.legend()
plt.show()

# %% [markdown]
# ## Which one?
#
# - Begin with "data": it needs no argument. It serves as long as every device gets enough samples.
# - Where fitness has too few samples to keep all devices busy, divide the members: "population".
# - Where parameters and the optimizer's state do not fit a device, "fsdp".
#
# On several hosts the program stays as it is; each of them runs it, after
# `jax.distributed.initialize()`. `benchmarks/pod.py` is such a program, with times, and the README
# beside it has the commands that start it on GPUs, on a TPU pod and under Slurm.
