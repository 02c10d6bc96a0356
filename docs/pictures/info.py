"""Draws what `state.info` says of a sigma that is too small, right or too large.

A linear classifier of scikit-learn's digits, trained by SGD on the cross-entropy; cycles select on
the error of a batch.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from egd_optax import CycleInfo, accept, evolve

HERE = Path(__file__).parent
SIGMAS = {"too small": 0.0005, "fits": 0.1, "too large": 3.0}
CYCLES, EVERY, BATCH = 40, 5, 256
BLUE, ORANGE, GREY = "#1f88c9", "#d55e00", "#777777"


def run(sigma: float) -> CycleInfo:
    """What each cycle did, in arrays `[CYCLES]`."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    tx = evolve(
        optax.sgd(0.05),
        evolve_every=EVERY,
        population_size=16,
        sigma=sigma,
        accept=accept.improved(),
    )

    def loss(params: jax.Array, at: jax.Array) -> jax.Array:
        logits = images[at] @ params
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[at]))

    def error(params: jax.Array, at: jax.Array) -> jax.Array:
        return jnp.mean(jnp.argmax(images[at] @ params, axis=-1) != labels[at])

    def step(carry: tuple[jax.Array, optax.OptState], key: jax.Array) -> tuple[object, CycleInfo]:
        params, state = carry
        at = jax.random.randint(key, (BATCH,), 0, len(labels))
        updates, state = tx.update(jax.grad(loss)(params, at), state, params, value_fn=error, at=at)
        return (optax.apply_updates(params, updates), state), state.info

    params = 0.1 * jax.random.normal(jax.random.key(0), (64, 10))
    keys = jax.random.split(jax.random.key(1), CYCLES * EVERY)
    _, infos = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return jax.tree.map(lambda scalars: np.asarray(scalars)[EVERY - 1 :: EVERY], infos)


def draw() -> None:
    """A panel for each sigma."""
    plt.style.use(HERE.parents[1] / "notebooks" / "style.mplstyle")
    _, panels = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    for axes, (name, sigma) in zip(panels, SIGMAS.items(), strict=True):
        info = run(sigma)
        at = info.cycle_index
        axes.fill_between(at, info.best_fitness, info.mean_fitness, color=GREY, alpha=0.3, lw=0,
                          label="best member to mean")  # fmt: skip
        axes.plot(at, info.parent_fitness, color=GREY, label="parent")
        taken = info.accepted
        axes.plot(at[taken], info.child_fitness[taken], "o", color=BLUE, label="child, taken")
        axes.plot(at[~taken], info.child_fitness[~taken], "x", color=ORANGE, label="child, refused")
        axes.set(title=f"sigma {sigma:g}, {name}: {taken.mean():.0%} taken", xlabel="cycle")
    panels[0].set_ylabel("error on the batch")
    panels[1].legend(fontsize="small")
    plt.savefig(HERE / "info.png", dpi=80, transparent=True)


if __name__ == "__main__":
    draw()
