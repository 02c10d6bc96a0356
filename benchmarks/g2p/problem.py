"""The network with weights of few bits, as a problem of `benchmarks.quality`."""

from collections.abc import Callable

import jax

from benchmarks.g2p import network
from benchmarks.g2p.dictionary import Params, Splits, Words
from benchmarks.g2p.rounding import Format, deployed, straight_through
from benchmarks.quality.ledger import FORWARDS_PER_GRADIENT
from benchmarks.quality.problem import Objective, Problem

BATCH_SIZE = 64
# Words through the network in a run: 300 gradient steps of 64 words, each word at the price of 3.
BUDGET = 300 * BATCH_SIZE * FORWARDS_PER_GRADIENT


def problem(params: Params, splits: Splits, form: Format, budget: int = BUDGET) -> Problem:
    """Recover the network after rounding.

    Gradients follow the cross-entropy, straight through the rounding. What counts is the word error
    of the rounded network, with greedy decoding.

    Args:
        params: the pretrained float32 parameters, where all runs start.
        splits: the words.
        form: how weights are deployed.
        budget: words through the network that a run may spend.
    """

    def after(change: Callable[[Params, Format], Params], measure: Objective) -> Objective:
        def measured(params: Params, words: Words) -> jax.Array:
            return measure(change(params, form), words)

        return measured

    return Problem(
        name=form.name,
        kind="metric",
        init=lambda key: params,
        loss=network.cross_entropy,
        fitness=after(deployed, network.word_error),
        straight_through=after(straight_through, network.cross_entropy),
        score=after(deployed, network.word_error),
        **splits._asdict(),
        batch_size=BATCH_SIZE,
        budget=budget,
    )
