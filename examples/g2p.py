"""A pretrained network with weights of four bits: what wins its errors back?

    pip install --no-deps --requirement benchmarks/g2p/requirements.txt
    python -m examples.g2p

The network of g2p-en reads a word and says its phonemes. Rounding its weights to four bits breaks
words that it knew. Adam recovers them with straight-through gradients of the cross-entropy. What
counts is the word error of the rounded network with greedy decoding, which has no gradient. So a
part of the compute may go to cycles on the word error itself: light ones within the training, or a
few generations at its end. All ways have the same compute: a word through the network costs 1, its
gradient 3. The lines say the word error on words that no training saw.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

from benchmarks.g2p import dictionary, network
from benchmarks.g2p.dictionary import Params, Words
from benchmarks.g2p.rounding import Format, deployed, straight_through
from benchmarks.quality.ledger import FORWARDS_PER_GRADIENT
from egd_optax import evolve, is_due, presets

FORM = Format(bits=4, rows=False)
LEARNING_RATE, BATCH = 2e-4, 64
# A cycle scores 64 members on half a batch; a finish has four generations of 16.
MEMBERS, FEW = 64, 32
GENERATIONS, OF_FINISH = 4, 16
# The part of the compute that a cycle or a finish gets, and their noise.
SHARE, SIGMA = 0.1, 0.01
# The first number of batches that no gradient step draws.
OTHER = 1_000_000


class Ended(NamedTuple):
    """A run.

    Attributes:
        params: the last parameters.
        forwards: words through the network.
    """

    params: Params
    forwards: int


def loss(params: Params, words: Words) -> jax.Array:
    """The cross-entropy of the rounded network, with a gradient straight through the rounding."""
    return network.cross_entropy(straight_through(params, FORM), words)


def word_error(params: Params, words: Words) -> jax.Array:
    """Of the rounded network: what is deployed."""
    return network.word_error(deployed(params, FORM), words)


def drawn(words: Words, number: int, size: int) -> Words:
    """The words of a step."""
    key = jax.random.fold_in(jax.random.key(0), number)
    return dictionary.take(words, jax.random.randint(key, (size,), 0, len(words.letters)))


def trained(params: Params, words: Words, steps: int, **cycles: Any) -> Ended:
    """Adam, whose schedule ends with its last step, and cycles if there are settings of some."""
    tx = optax.with_extra_args_support(
        optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    )
    if cycles:
        tx = evolve(tx, **cycles)

    @functools.partial(jax.jit, static_argnames="evolve")
    def step(params: Params, state: Any, batch: Words, evolve: bool) -> Any:
        def value_fn(params: Params) -> jax.Array:
            return word_error(params, dictionary.take(batch, jnp.arange(FEW)))

        gradients = jax.grad(loss)(params, batch)
        extra = {"value_fn": value_fn, "evolve": evolve} if cycles else {}
        updates, state = tx.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state, spent = tx.init(params), 0
    for number in track(range(steps), "steps"):
        due = bool(cycles) and is_due(number + 1, cycles["evolve_every"], cycles["window"])
        params, state = step(params, state, drawn(words, number, BATCH), due)
        spent += FORWARDS_PER_GRADIENT * BATCH + due * MEMBERS * FEW
    return Ended(params, spent)


def finished(start: Ended, words: Words, size: int) -> Ended:
    """Generations on the word error itself, without a gradient, each on so many words."""
    settings = presets.finish(GENERATIONS, population_size=OF_FINISH, sigma=SIGMA)
    tx = evolve(optax.set_to_zero(), **settings)

    @jax.jit
    def step(params: Params, state: Any, batch: Words) -> Any:
        updates, state = tx.update(
            None, state, params, value_fn=lambda params: word_error(params, batch)
        )
        return optax.apply_updates(params, updates), state

    params, state = start.params, tx.init(start.params)
    for number in track(range(GENERATIONS), "generations"):
        params, state = step(params, state, drawn(words, OTHER + number, size))
    return Ended(params, start.forwards + GENERATIONS * OF_FINISH * size)


def ways(steps: int) -> dict[str, Callable[[Params, Words], Ended]]:
    """What is compared, for the compute of so many gradient steps."""
    fewer = round((1 - SHARE) * steps)
    light = presets.metric(
        fewer, share=SHARE, samples=FEW / BATCH, population_size=MEMBERS, sigma=SIGMA / 2
    )
    size = (steps - fewer) * FORWARDS_PER_GRADIENT * BATCH // (GENERATIONS * OF_FINISH)
    return {
        "rounded, not trained": lambda params, words: Ended(params, 0),
        "straight-through": lambda params, words: trained(params, words, steps),
        "straight-through, light cycles": lambda params, words: trained(
            params, words, fewer, **light
        ),
        "straight-through, finish": lambda params, words: finished(
            trained(params, words, fewer), words, size
        ),
    }


def main() -> None:
    """Trains in each way, and prints the word error on new words."""
    parser = argparse.ArgumentParser(prog="python -m examples.g2p", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, and fewer new words")
    steps, count = (120, 100) if parser.parse_args().quick else (300, 3000)
    params, splits = dictionary.pretrained(), dictionary.load()
    new = dictionary.take(splits.test, jnp.arange(min(count, len(splits.test.letters))))
    float32 = float(jax.jit(network.word_error)(params, new))
    print({"way": "float32", "word error": round(float32, 3), "words through the network": 0})
    measured = jax.jit(word_error)
    for way, run in ways(steps).items():
        last, forwards = run(params, splits.train)
        error = round(float(measured(last, new)), 3)
        print({"way": way, "word error": error, "words through the network": forwards})


if __name__ == "__main__":
    main()
