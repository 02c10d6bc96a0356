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
# # A cycle, frame by frame
#
# Evolutionary Gradient Descent takes a step of an optax optimizer on every step. Every N steps it
# also runs an evolution cycle. It adds noise to the parameters, scores the results with forward
# passes, and combines the best. If that was better, it goes on from there.
#
# This notebook shows one cycle on a surface with many minima. Then it trains a small network on a
# loss that has no useful gradient. No setting and no seed was tuned for these pictures.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
import numpy as np
import optax
from sklearn.datasets import load_digits

from egd_optax import egd, noise

# %% [markdown]
# The figures are transparent, in tones that can be read on white and on black.

# %%
plt.style.use("style.mplstyle")  # the file beside this notebook
GREY, BLUE, ORANGE = "#777777", "#1f88c9", "#d55e00"

# %% [markdown]
# ## A surface with many minima
#
# Rastrigin's function, shifted and turned. Its lowest point is `CENTRE`, where it is 0. The minima
# around it lie a distance of 1 apart, and gradient descent ends in the one that it starts in.

# %%
CENTRE = jnp.array([0.7, -0.4])
TURN = jnp.array([[0.8, -0.6], [0.6, 0.8]])
START = jnp.array([-2.6, 2.2])


def landscape(point):
    """Rastrigin's function of a point `[2]`."""
    z = TURN @ (point - CENTRE)
    return 20 + jnp.sum(z**2 - 10 * jnp.cos(2 * jnp.pi * z))


# %% [markdown]
# SGD, and the same SGD with a cycle every 25 steps. The noise has a standard deviation of 0.5, in
# units of the parameters: half the distance between two minima.

# %%
EVERY = 25
sgd_tx = optax.sgd(1e-3)
absolute = noise.gaussian(relative=False)
egd_tx = egd(1e-3, evolve_every=EVERY, population_size=16, sigma=0.5, noise=absolute)

# %% [markdown]
# `value_fn` says what a cycle selects on. Here it is the surface itself, and we also keep every
# point that it is asked about.

# %%
seen = []


def recorded(point):
    """The surface, noting down the point and its value."""
    value = landscape(point)
    jax.debug.callback(lambda *pair: seen.append(pair), point, value)
    return value


# %% [markdown]
# The training loop is the usual one of optax. What is new is one argument of `update`.


# %%
def run(tx, steps=250):
    """Returns the points on the way, `[steps + 1, 2]`, and the info of each cycle."""
    tx = optax.with_extra_args_support(tx)  # lets plain SGD ignore `value_fn`

    @jax.jit
    def step(params, state):
        grads = jax.grad(landscape)(params)
        updates, state = tx.update(grads, state, params, value_fn=recorded)
        return optax.apply_updates(params, updates), state

    params, state = START, tx.init(START)
    path, infos = [params], []
    for count in range(1, steps + 1):
        params, state = step(params, state)
        path.append(params)
        if hasattr(state, "info") and count % EVERY == 0:
            infos.append(jax.device_get(state.info))
            jax.effects_barrier()  # waits for the callbacks of this cycle
    return np.array(path), infos


sgd_path, _ = run(sgd_tx)
egd_path, infos = run(egd_tx)
for info in infos:
    print(
        f"cycle {info.cycle_index}:  parent {info.parent_fitness:5.2f}"
        f"  best {info.best_fitness:5.2f}"
        f"  child {info.child_fitness:5.2f}  {'jumped' if info.accepted else 'parent kept'}"
    )

# %% [markdown]
# Most cycles keep the parent: they cost forward passes and change nothing. Some jump.
#
# ## One cycle, frame by frame
#
# The first cycle that jumped. It asked for the value of 17 points: 16 members, of which one is the
# parent itself, and the child. `state.info` tells which is which.

# %%
shown = next(info for info in infos if info.accepted)
end = (shown.cycle_index + 1) * EVERY  # the step of this cycle
of_cycle = seen[shown.cycle_index * shown.evaluations :][: shown.evaluations]
points, values = (np.array(column) for column in zip(*of_cycle, strict=True))
parent = points[values == shown.parent_fitness][0]
child = points[values == shown.child_fitness][0]

is_member = values != shown.child_fitness
order = np.argsort(values[is_member])
members, fitness = points[is_member][order], values[is_member][order]
elites = members[:4]  # the best quarter
assert np.allclose(child, elites.mean(axis=0), atol=1e-5)  # how a child is made

# %% [markdown]
# A function for the background, with markers that do not depend on colour: a square is the parent,
# small dots are members, rings are elites, a star is the child, a cross is where the run goes on.

# %%
PARENT = {"marker": "s", "color": "black", "edgecolors": "white", "s": 60, "zorder": 3}
MEMBER = {"marker": "o", "color": "black", "edgecolors": "white", "s": 26, "zorder": 2}
ELITE = {"marker": "o", "facecolors": "none", "edgecolors": BLUE, "s": 90, "linewidths": 2}
CHILD = {"marker": "*", "color": BLUE, "s": 170, "zorder": 4}
LANDING = {"marker": "X", "color": ORANGE, "s": 90, "zorder": 5}


LEVELS = [0, 5, 10, 20, 30, 40, 50, 70]  # dark valleys, light hills


def contours(axes, low, high):
    """Draws the surface over the square from `low` to `high`, `[2]` each."""
    x, y = (np.linspace(*ends, 160) for ends in zip(low, high, strict=True))
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    heights = jnp.vectorize(landscape, signature="(n)->()")(grid)
    filled = axes.contourf(x, y, heights, levels=LEVELS, cmap="cividis", alpha=0.6, extend="max")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set(xlabel="first parameter", ylabel="second parameter")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return filled


# %%
def frame(axes, title):
    """A frame of the region around the parent that shows every member."""
    reach = 1.1 * np.max(abs(members - parent))
    filled = contours(axes, parent - reach, parent + reach)
    axes.set_title(title)
    axes.scatter(*parent, **PARENT)
    return filled


landing = egd_path[end]
figure, frames = plt.subplots(2, 3, figsize=(11, 7.2))

frame(frames[0, 0], "1  SGD leads to the parent")
frames[0, 0].plot(*egd_path[:end].T, ".-", color=ORANGE)

frame(frames[0, 1], "2  members: parent + noise")
frames[0, 1].scatter(*members.T, **MEMBER)

ranks = np.arange(1, 17)
frames[0, 2].set_box_aspect(1)
frames[0, 2].set(title="3  value by rank: 4 elites", xlabel="rank", ylabel="value")
frames[0, 2].set_xticks([1, 4, 8, 12, 16])
frames[0, 2].scatter(ranks, fitness, **MEMBER)
frames[0, 2].scatter(ranks[:4], fitness[:4], **ELITE, label="elite")
at_parent = fitness == shown.parent_fitness
frames[0, 2].scatter(ranks[at_parent], fitness[at_parent], **PARENT, label="parent")
frames[0, 2].axhline(shown.child_fitness, color=BLUE, linestyle="--", label="child, of frame 4")
frames[0, 2].legend(loc="lower right")

frame(frames[1, 0], "4  child: mean of the elites")
frames[1, 0].scatter(*elites.T, **ELITE)
for elite in elites:
    frames[1, 0].plot(*np.stack([elite, child]).T, color=BLUE, linewidth=1)
frames[1, 0].scatter(*child, **CHILD)

frame(frames[1, 1], "5  jump to the best of all")
frames[1, 1].scatter(*elites.T, **ELITE)
frames[1, 1].scatter(*child, **CHILD)
frames[1, 1].annotate(
    "", landing, parent, arrowprops={"arrowstyle": "->", "color": ORANGE, "linewidth": 2}
)
frames[1, 1].scatter(*landing, **LANDING)

filled = frame(frames[1, 2], "6  SGD resumes from there")
frames[1, 2].plot(*egd_path[end : end + EVERY].T, ".-", color=ORANGE)
frames[1, 2].scatter(*landing, **LANDING)
figure.colorbar(filled, ax=frames, label="value of the surface", shrink=0.6)
plt.show()

# %% [markdown]
# With `accept=accept.best()`, the default, the run goes on from the best of child, elites and
# parent. On a surface like this one the mean of points in different valleys may well lie on a
# ridge, and then an elite wins. On a smoother surface the child often does, because averaging
# cancels noise.
#
# ## The whole run

# %%
_, (map_axes, loss_axes) = plt.subplots(1, 2, figsize=(10, 4.4))
contours(map_axes, (-4, -3), (3, 4))
map_axes.plot(*egd_path.T, "o-", color=BLUE, markersize=4, label="EGD")
map_axes.plot(*sgd_path.T, "s-", color=ORANGE, markevery=[-1], markersize=9, label="SGD")
map_axes.scatter(*CENTRE, marker="+", s=150, color="white", linewidths=2, label="lowest point")
map_axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)

surface = jax.jit(jax.vmap(landscape))
loss_axes.plot(surface(sgd_path), "--", color=ORANGE, label="SGD")
loss_axes.plot(surface(egd_path), color=BLUE, label="EGD")
for info in infos:
    count = (info.cycle_index + 1) * EVERY
    jumped = bool(info.accepted)
    loss_axes.plot(count, 0.5, "^" if jumped else "x", color=BLUE if jumped else GREY)
loss_axes.plot([], [], "^", color=BLUE, label="cycle, jumped")
loss_axes.plot([], [], "x", color=GREY, label="cycle, parent kept")
loss_axes.set(xlabel="step", ylabel="value")
loss_axes.legend()
plt.show()

# %% [markdown]
# ## Is that luck?
#
# One start proves nothing, so here are 100, drawn uniformly, each with noise of its own. A gradient
# counts as three forward passes; a run of EGD then costs as much as 12 short runs of SGD. The third
# line is the best of 12 such restarts.

# %%
STARTS = jax.random.uniform(jax.random.key(0), (100, 12, 2), minval=-4.0, maxval=4.0)


def descend(tx, start, steps):
    """The value after so many steps from `start`, as one compiled loop."""
    tx = optax.with_extra_args_support(tx)

    def step(_, carry):
        params, state = carry
        grads = jax.grad(landscape)(params)
        updates, state = tx.update(grads, state, params, value_fn=landscape)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
    return landscape(params)


# %%
@jax.jit
def final_values(starts, key):
    """What SGD, EGD and restarts of SGD end with, from starts `[12, 2]`."""
    evolved_tx = egd(
        1e-3, evolve_every=EVERY, population_size=16, sigma=0.5, noise=absolute, key=key
    )
    restarts = [descend(sgd_tx, start, EVERY) for start in starts]
    sgd, evolved = (descend(tx, starts[0], 250) for tx in (sgd_tx, evolved_tx))
    return sgd, evolved, jnp.min(jnp.stack(restarts))


keys = jax.random.split(jax.random.key(1), 100)
finals = [np.array(final_values(*pair)) for pair in zip(STARTS, keys, strict=True)]

# %%
_, axes = plt.subplots(figsize=(6, 3.4))
lines = {
    "SGD": {"color": ORANGE, "linestyle": "--"},
    "EGD": {"color": BLUE, "linestyle": "-"},
    "best of 12 restarts of SGD": {"color": GREY, "linestyle": ":"},
}
for (name, line), ends in zip(lines.items(), np.transpose(finals), strict=True):
    axes.plot(np.sort(ends), np.arange(1, 101), drawstyle="steps-post", lw=2, label=name, **line)
    reached = np.mean(ends < 0.5)
    print(f"{name:27} median {np.median(ends):5.2f}   in the lowest valley {reached:.0%}")
axes.set(xlabel="final value", ylabel="starts that end at or below it")
axes.legend()
plt.show()

# %% [markdown]
# From most starts EGD ends below SGD, yet rarely in the lowest valley. In two dimensions restarts
# at the same cost do better: a dozen random points go a long way in a small square. They would not
# go far among the parameters of a network.

# %% [markdown]
# ## A loss without a gradient
#
# Now a network for scikit-learn's digits whose weights are rounded before use, as for a device that
# stores few bits. The loss after rounding is flat almost everywhere, or jumps. SGD follows the
# gradient of the loss before rounding; a cycle can select on what counts.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images = jnp.asarray(images[order] / 16, jnp.float32)
labels = jnp.asarray(labels[order], jnp.int32)
train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def init(key):
    """Parameters for 64 pixels, 32 hidden units, 10 digits."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, 32)) / 64**0.5,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(second, (32, 10)) / 32**0.5,
        "b2": jnp.zeros(10),
    }


def logits(params, images):
    """The network."""
    return jax.nn.relu(images @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss(params, images, labels):
    """Mean cross-entropy."""
    outputs = logits(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


# %% [markdown]
# Two ways to round weights, a mild one and a harsh one. The harsh one was added after EGD had lost
# on the mild one.


# %%
def to_quarters(weights):
    """Multiples of 1/4."""
    return jnp.round(4 * weights) / 4


def to_three_values(weights):
    """Only -s, 0 and s, where s is half as much again as the mean magnitude."""
    s = 1.5 * jnp.mean(abs(weights))
    return s * jnp.clip(jnp.round(weights / s), -1, 1)


def with_weights(rounding, params):
    """The parameters with rounded weights; biases stay."""
    return params | {name: rounding(params[name]) for name in ("w1", "w2")}


# %% [markdown]
# `egd` takes the learning rate and the momentum of SGD. `sigma` is here a fraction of each tensor's
# root mean square.

# %%
sgd_tx = optax.sgd(0.1, momentum=0.9)
egd_tx = egd(0.1, momentum=0.9, evolve_every=20, population_size=16, sigma=0.05)

# %% [markdown]
# The jitted step. The gradient comes from 32 images, the fitness from 128 others. Extra arguments
# of `update` that `value_fn` has a parameter for are passed on to it: here `images` and `labels`.


# %%
def batch(key, size):
    """Draws training images."""
    rows = jax.random.randint(key, (size,), 0, len(train[1]))
    return train[0][rows], train[1][rows]


def make_step(tx, rounding):
    """A jitted step that selects on the loss after `rounding`."""
    tx = optax.with_extra_args_support(tx)

    def rounded_loss(params, images, labels):
        return loss(with_weights(rounding, params), images, labels)

    @jax.jit
    def step(params, state, key, count):
        gradient_key, fitness_key = jax.random.split(jax.random.fold_in(key, count))
        grads = jax.grad(loss)(params, *batch(gradient_key, 32))
        images, labels = batch(fitness_key, 128)
        updates, state = tx.update(
            grads, state, params, value_fn=rounded_loss, images=images, labels=labels
        )
        return optax.apply_updates(params, updates), state

    return step


# %%
def fit(tx, step, seed, steps):
    """Trains from a seed; returns the parameters and the info of each cycle."""
    batch_key, init_key = jax.random.split(jax.random.key(seed))
    params = init(init_key)
    state, infos = tx.init(params), []
    for count in range(1, steps + 1):
        params, state = step(params, state, batch_key, count)
        if tx is egd_tx and count % 20 == 0:
            infos.append(state.info)
    return params, jax.device_get(infos)


# %% [markdown]
# A cycle costs 17 forward passes on 128 images. Counting a gradient as three forward passes, 600
# steps of EGD cost as much as 1280 of SGD, so SGD gets 1280. It trains the same network for both
# roundings; EGD trains one for each.


# %%
@jax.jit(static_argnames="rounding")
def test_error(params, rounding):
    """Share of wrong digits on the test images, in percent."""
    outputs = logits(with_weights(rounding, params), test[0])
    return 100 * jnp.mean(jnp.argmax(outputs, axis=-1) != test[1])


SEEDS = range(5)
ROUNDINGS = {"multiples of 1/4": to_quarters, "three values": to_three_values}
sgd_step = make_step(sgd_tx, to_quarters)  # which SGD ignores
sgd_runs = [fit(sgd_tx, sgd_step, seed, 1280) for seed in SEEDS]

errors, histories = {}, {}
for title, rounding in ROUNDINGS.items():
    egd_step = make_step(egd_tx, rounding)
    egd_runs = [fit(egd_tx, egd_step, seed, 600) for seed in SEEDS]
    histories[title] = [infos for _, infos in egd_runs]
    for name, runs in {"SGD": sgd_runs, "EGD": egd_runs}.items():
        errors[name, title] = [float(test_error(params, rounding)) for params, _ in runs]
        print(f"{name}, {title:17} mean test error {np.mean(errors[name, title]):5.2f}%")

# %% [markdown]
# ## Reading `state.info`
#
# Left, the cycles of the first seed with three values. Right, the test errors of all seeds.

# %%
history = jax.tree.map(lambda *column: np.array(column), *histories["three values"][0])
cycles = history.cycle_index
_, (cycle_axes, error_axes) = plt.subplots(1, 2, figsize=(10, 3.8))
cycle_axes.plot(cycles, history.mean_fitness, "-", color=GREY, lw=1, label="mean of members")
cycle_axes.plot(cycles, history.parent_fitness, ":", color=GREY, lw=2, label="parent")
cycle_axes.plot(cycles, history.best_fitness, "--", color=ORANGE, label="best member")
cycle_axes.plot(cycles, history.child_fitness, "-*", color=BLUE, label="child")
cycle_axes.set(xlabel="cycle", ylabel="loss after rounding", yscale="log")
cycle_axes.legend()

for row, ((name, _), percents) in enumerate(errors.items()):
    spread = row + np.linspace(-0.15, 0.15, len(percents))
    style = {"marker": "s", "color": ORANGE} if name == "SGD" else {"marker": "*", "color": BLUE}
    error_axes.scatter(percents, spread, s=60, **style)
error_axes.set_yticks(range(len(errors)), [", ".join(pair) for pair in errors])
error_axes.set(xlabel="test error in percent, 5 seeds", ylim=(len(errors) - 0.5, -0.5))
plt.show()
print(f"{np.mean(history.accepted):.0%} of these cycles left the parent")

# %% [markdown]
# With the mild rounding SGD ends a little better at the same cost: the gradient before rounding is
# all it needs. With three values EGD ends better in the mean of five seeds, but not on all of them:
# the ranges overlap. Where a trick gives back a useful
# gradient, as straight-through gradients do for rounding, try the trick first; cycles are for the
# metrics that have none.
