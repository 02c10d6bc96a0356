"""Decisions on a rare class, judged by measures of hard decisions.

"Is this digit an 8" has 174 positives in 1,797 samples (9.7%), of the sets that ship with
scikit-learn the most: breast cancer thinned to 15% malignant would keep 63. The model is
linear: a network of 32 hidden units soon decides all training samples right, and that leaves
the fitness nothing to improve.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from benchmarks.quality.problem import Batch, Params, Problem
from benchmarks.quality.problems import samples

POSITIVE = 8
PIXELS = 64

# Maps counts of true positives, false positives and false negatives and of all samples,
# of one shape, to a measure of that shape, lower is better.
Counted = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def f1_imbalanced() -> Problem:
    """1 - F1; 65 parameters."""
    return imbalanced("f1_imbalanced", one_minus_f1)


def zero_one_imbalanced() -> Problem:
    """The mean of the two classes' error rates; 65 parameters."""
    return imbalanced("zero_one_imbalanced", balanced_error)


def imbalanced(name: str, counted: Counted) -> Problem:
    """A linear model that is judged by counts of its decisions."""
    splits = samples.Splits(*map(positives, samples.digits()))

    def objective(params: Params, batch: Batch) -> jax.Array:
        return counted(*counts(predict(params, batch.inputs) > 0, batch.targets))

    def loss(params: Params, batch: Batch) -> jax.Array:
        logits = predict(params, batch.inputs)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch.targets))

    return Problem(
        name=name,
        kind="metric",
        init=init,
        loss=loss,
        fitness=objective,
        straight_through=None,
        score=objective,
        **splits._asdict(),
        # Six positives, on average.
        batch_size=64,
        budget=600_000,
        threshold=lambda params, batch: tune(counted, params, batch),
    )


def positives(split: samples.Samples) -> samples.Samples:
    """The same images, with 1 for the rare class and 0 for the others."""
    return split._replace(targets=(split.targets == POSITIVE).astype(jnp.int32))


def init(key: jax.Array) -> Params:
    """Draws weights of variance 1 / pixels and a zero bias."""
    return {"weights": jax.random.normal(key, [PIXELS]) / PIXELS**0.5, "bias": jnp.zeros([])}


def predict(params: Params, inputs: jax.Array) -> jax.Array:
    """Logits `[n]`; the decision is for the rare class where they are above 0."""
    logits: jax.Array = inputs @ params["weights"] + params["bias"]
    return logits


def counts(
    decisions: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """True positives, false positives, false negatives and all samples, as floats."""
    found = jnp.sum(decisions & (targets == 1), dtype=jnp.float32)
    decided, positive = (jnp.sum(x, dtype=jnp.float32) for x in (decisions, targets))
    return found, decided - found, positive - found, jnp.asarray(targets.size, jnp.float32)


def one_minus_f1(tp: jax.Array, fp: jax.Array, fn: jax.Array, size: jax.Array) -> jax.Array:
    """1 - F1; 0 where there is nothing to find and nothing was found."""
    return (fp + fn) / jnp.maximum(2 * tp + fp + fn, 1)


def balanced_error(tp: jax.Array, fp: jax.Array, fn: jax.Array, size: jax.Array) -> jax.Array:
    """The mean of the error rates of both classes; that of a class without samples is 0."""
    misses = fn / jnp.maximum(tp + fn, 1)
    false_alarms = fp / jnp.maximum(size - tp - fn, 1)
    return (misses + false_alarms) / 2


def tune(counted: Counted, params: Params, batch: Batch) -> Params:
    """Moves the bias to the threshold that is best on a batch.

    All thresholds between two neighbouring logits decide alike, so one of each is tried, and
    one below and one above all logits; of equally good ones the highest is taken.
    """
    logits = predict(params, batch.inputs)
    order = jnp.argsort(-logits)
    ordered, targets = logits[order], batch.targets[order]
    bounds = jnp.concatenate([ordered[:1] + 1, ordered, ordered[-1:] - 1])
    cuts = (bounds[:-1] + bounds[1:]) / 2
    # Entry i decides for the i largest logits.
    found = jnp.concatenate([jnp.zeros(1), jnp.cumsum(targets)])
    decided = jnp.arange(len(cuts))
    values = counted(
        found, decided - found, found[-1] - found, jnp.asarray(targets.size, jnp.float32)
    )
    # No threshold separates equal logits.
    possible = bounds[:-1] > bounds[1:]
    best = cuts[jnp.argmin(jnp.where(possible, values, jnp.inf))]
    return {**params, "bias": params["bias"] - best}
