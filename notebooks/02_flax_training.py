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
# # Training with Flax
#
# A small network with batch normalisation and dropout, in NNX and in linen, whose cycles select on
# the error rate of images that the gradients do not see. On the way: scalars for a dashboard, a
# checkpoint in the middle of an interval, and a host loop that decides itself when to evolve.

# %%
from pathlib import Path
import tempfile
from typing import Any

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

from egd_optax import evolve, is_due
import egd_optax.flax
from egd_optax.flax import nnx_value_fn

# %% [markdown]
# The figures are transparent, in tones that can be read on white and on black.

# %%
plt.style.use("style.mplstyle")  # the file beside this notebook
GREY, BLUE, ORANGE = "#777777", "#1f88c9", "#d55e00"

# %% [markdown]
# ## Data
#
# Scikit-learn's digits in three parts: for gradients, for fitness, and for the test.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images = jnp.asarray(images[order] / 16, jnp.float32)
labels = jnp.asarray(labels[order], jnp.int32)
train, held_back, test = (
    (images[rows], labels[rows]) for rows in (slice(900), slice(900, 1300), slice(1300, None))
)


def batch(split, key, size):
    """Draws images and labels from a split."""
    rows = jax.random.randint(key, (size,), 0, len(split[1]))
    return split[0][rows], split[1][rows]


def cross_entropy(logits, labels):
    """The loss that has a gradient."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def error_rate(logits, labels):
    """The metric that counts; it has none."""
    return jnp.mean(jnp.argmax(logits, axis=-1) != labels)


# %% [markdown]
# The optimizer is AdamW, and every 40 steps a cycle of 8 members, with the default noise: 2% of
# each tensor's root mean square.

# %%
EVERY, STEPS = 40, 400
adamw = optax.adamw(1e-3)
tx = evolve(adamw, evolve_every=EVERY)

# %% [markdown]
# ## NNX
#
# `nnx_value_fn(model, metric)` scores a copy of the model in evaluation mode with the parameters of
# a member; the model itself is not touched.


# %%
class Model(nnx.Module):
    """64 pixels -> 32 hidden units -> 10 logits."""

    def __init__(self, rngs):
        """Draws the parameters."""
        self.hidden = nnx.Linear(64, 32, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        """Computes the logits."""
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(images)))))


@nnx.jit
def nnx_step(model, optimizer, key):
    """One step; changes the model and the optimizer."""
    train_key, fitness_key = jax.random.split(jax.random.fold_in(key, optimizer.step[...]))
    train_images, train_labels = batch(train, train_key, 64)
    fitness_images, fitness_labels = batch(held_back, fitness_key, 256)

    grads = nnx.grad(lambda model: cross_entropy(model(train_images), train_labels))(model)
    value_fn = nnx_value_fn(model, lambda model: error_rate(model(fitness_images), fitness_labels))
    optimizer.update(model, grads, value_fn=value_fn)


# %% [markdown]
# ## Scalars for a dashboard
#
# `info`, the report of a cycle, becomes a flat dict of floats. With a `SummaryWriter` of any
# library, one line writes them:
#
# ```python
# for name, value in scalars(optimizer.opt_state.info).items(): writer.add_scalar(name, value, step)
# ```


# %%
def scalars(info, prefix="egd/"):
    """The report of the latest cycle, as Python floats; nothing before the first."""
    if float(info.cycle_index) < 0:
        return {}
    fields = info._asdict()
    fields.pop("aux")  # a second result of `value_fn`, which need not be a scalar
    return {prefix + name: float(value) for name, value in fields.items()}


# %% [markdown]
# Training, with the scalars written down after each cycle.

# %%
KEY = jax.random.key(1)


def nnx_create(tx=tx):
    """A new model and its optimizer."""
    model = Model(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def nnx_fit(model, optimizer, steps):
    """Trains for so many steps; returns step and scalars of each cycle."""
    log = {}
    for _ in range(steps):
        nnx_step(model, optimizer, KEY)
        count = int(optimizer.step[...])
        if is_due(count, EVERY):
            log[count] = scalars(optimizer.opt_state.info)
    return log


model, optimizer = nnx_create()
nnx_log = nnx_fit(model, optimizer, STEPS)
nnx_log[STEPS]

# %% [markdown]
# Left, the error rate of the parents. Right, what the cycles found, as the difference from the
# parent: below zero is better. Under it, what became of the parameters.

# %%
LINES = {
    "egd/mean_fitness": {"color": GREY, "linestyle": ":", "label": "mean of members"},
    "egd/best_fitness": {"color": ORANGE, "marker": "s", "linestyle": "--", "label": "best member"},
    "egd/child_fitness": {"color": BLUE, "marker": "*", "markersize": 9, "label": "child"},
}


def draw(log, title):
    """Draws the scalars of every cycle."""
    column = {name: 100 * np.array([entry[name] for entry in log.values()]) for name in log[EVERY]}
    parent = column["egd/parent_fitness"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    figure.suptitle(title)
    left.plot(log.keys(), parent, "s-", color=GREY)
    left.set(xlabel="step", ylabel="parent: error of 256 images, %", ylim=(0, None))
    for name, line in LINES.items():
        right.plot(log.keys(), column[name] - parent, **line)
    right.axhline(0, color=GREY, linewidth=0.8)
    outcomes = ["jump" if accepted else "stay" for accepted in column["egd/accepted"]]
    ticks = [f"{count}\n{outcome}" for count, outcome in zip(log, outcomes, strict=True)]
    right.set_xticks(list(log), ticks)
    right.set(xlabel="step", ylabel="difference from the parent")
    right.legend()
    plt.show()


draw(nnx_log, "NNX")

# %% [markdown]
# Did it help? The same step with plain AdamW. `with_extra_args_support` lets it ignore `value_fn`.


# %%
@nnx.jit
def test_error(model):
    """Share of wrong digits on the test images, in percent."""
    return 100 * nnx_value_fn(model, lambda model: error_rate(model(test[0]), test[1]))(
        nnx.state(model, nnx.Param)
    )


plain = nnx_create(optax.with_extra_args_support(adamw))
for _ in range(STEPS):
    nnx_step(*plain, KEY)
print(f"test error: AdamW {test_error(plain[0]):.2f}%, with cycles {test_error(model):.2f}%")

# %% [markdown]
# That is one seed, and the same number of wrong digits: a tie. Where gradients already do the job,
# cycles add little.

# %% [markdown]
# ## A checkpoint in the middle of an interval
#
# Everything a cycle depends on is in the optimizer's state, so a resumed run is the uninterrupted
# one, bit for bit. Here the run stops at step 100, between the cycles of step 80 and step 120.


# %%
def bits(tree):
    """The raw bytes of every array, and of every key."""

    def of_leaf(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [of_leaf(leaf) for leaf in jax.tree.leaves(tree)]


# %% [markdown]
# `nnx.split` takes the model and its optimizer apart together; the arrays hold
# parameters, running statistics, the keys of dropout, and the optimizer's state.

# %%
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    stopped = nnx_create()
    nnx_fit(*stopped, 100)
    _, arrays = nnx.split(stopped)
    checkpointer.save(Path(folder) / "nnx", arrays)
    checkpointer.wait_until_finished()

    graphdef, blank = nnx.split(nnx_create())
    blank = jax.tree.map(ocp.utils.to_shape_dtype_struct, blank)
    restored = nnx.merge(graphdef, checkpointer.restore(Path(folder) / "nnx", blank))

resumed_log = nnx_fit(*restored, STEPS - 100)
assert bits(nnx.state(restored)) == bits(nnx.state((model, optimizer)))
assert all(resumed_log[count] == nnx_log[count] for count in resumed_log)
print(f"cycles after the restart, at steps {list(resumed_log)}: as in the uninterrupted run")

# %% [markdown]
# ## Linen
#
# The same network.
#
# `egd_optax.flax.TrainState` is linen's, with one difference: what `apply_gradients` does not know
# it hands to the optimizer. The running statistics get a field of their own, as usual.


# %%
class Network(nn.Module):
    """64 pixels -> 32 hidden units -> 10 logits."""

    @nn.compact
    def __call__(self, images, train):
        """Computes the logits."""
        hidden = nn.Dense(32, use_bias=False)(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        return nn.Dense(10)(hidden)


class TrainState(egd_optax.flax.TrainState):
    """With running statistics."""

    batch_stats: Any


network = Network()


def create(tx):
    """A new training state."""
    variables = network.init(jax.random.key(0), images[:1], train=False)
    return TrainState.create(apply_fn=network.apply, tx=tx, **variables)


# %% [markdown]
# The gradient sees dropout and batch statistics. `value_fn` runs the network in evaluation mode, so
# that all members are scored by the same function. The last argument is for later.


# %%
@jax.jit(static_argnames="evolve")
def step(state, key, evolve=None):
    """One step."""
    train_key, dropout_key, fitness_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
    train_images, train_labels = batch(train, train_key, 64)
    fitness_images, fitness_labels = batch(held_back, fitness_key, 256)

    def loss(params):
        logits, updated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            train_images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, train_labels), updated["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)

    def value_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        return error_rate(state.apply_fn(variables, fitness_images, train=False), fitness_labels)

    return state.apply_gradients(
        grads=grads, batch_stats=batch_stats, value_fn=value_fn, evolve=evolve
    )


# %%
def fit(state, steps):
    """Trains for so many steps; returns the state, and step and scalars of each cycle."""
    log = {}
    for _ in range(steps):
        state = step(state, KEY)
        if is_due(int(state.step), EVERY):
            log[int(state.step)] = scalars(state.opt_state.info)
    return state, log


state, log = fit(create(tx), STEPS)
draw(log, "linen")

# %% [markdown]
# The same checkpoint.

# %%
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    stopped, _ = fit(create(tx), 100)
    checkpointer.save(Path(folder) / "linen", stopped)
    checkpointer.wait_until_finished()
    blank = jax.tree.map(ocp.utils.to_shape_dtype_struct, create(tx))
    restored = checkpointer.restore(Path(folder) / "linen", blank)

resumed, resumed_log = fit(restored, STEPS - 100)
assert bits(resumed) == bits(state)
assert all(resumed_log[count] == log[count] for count in resumed_log)
print(f"cycles after the restart, at steps {list(resumed_log)}: as in the uninterrupted run")

# %% [markdown]
# ## A host loop that decides itself
#
# With `evolve=None` the compiled program looks at the step counter. A host loop can look instead:
# `evolve` is then a static argument, and there are two programs, one with a cycle and one without
# any trace of it. Steps count from 1.
#
# These are other programs than the one above and may round otherwise. With a metric that counts
# errors a last digit can then decide who is an elite, so the runs need not agree for long.

# %%
decided = create(tx)
for count in range(1, STEPS + 1):
    decided = step(decided, KEY, evolve=is_due(count, EVERY))

cycles = int(decided.opt_state.cycle)
print(f"{cycles} cycles in {STEPS} steps")
