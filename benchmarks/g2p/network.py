"""The network of g2p-en: a recurrent encoder of letters and a recurrent decoder of phonemes.

Gated recurrent units of Cho et al., 2014, https://arxiv.org/abs/1406.1078, in the form of PyTorch:
the reset gate multiplies the recurrent part of the candidate. Rows of a matrix are reset gates,
update gates and candidates, in that order.
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks.g2p.dictionary import END, PAD, START, Params, Words

# The hidden states, and the last phonemes.
Carry = tuple[jax.Array, jax.Array]


def unit(read: jax.Array, hidden: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """The next hidden state, `[n, size]`, from what was read, `[n, 3 * size]`."""
    kept = hidden @ weights.T + bias
    reset_read, update_read, new_read = jnp.split(read, 3, -1)
    reset_kept, update_kept, new_kept = jnp.split(kept, 3, -1)
    update = jax.nn.sigmoid(update_read + update_kept)
    new = jnp.tanh(new_read + jax.nn.sigmoid(reset_read + reset_kept) * new_kept)
    return new + update * (hidden - new)


def table(params: Params, side: str) -> jax.Array:
    """What the gates read of each token: the product of all embeddings with the input weights."""
    return params[f"{side}_emb"] @ params[f"{side}_w_ih"].T + params[f"{side}_b_ih"]


def encoded(params: Params, letters: jax.Array) -> jax.Array:
    """The hidden state behind the end of each word, `[n, size]`, from `[n, steps]` letters."""
    reads = table(params, "enc")

    def step(hidden: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        new = unit(reads[at], hidden, params["enc_w_hh"], params["enc_b_hh"])
        return jnp.where((at == PAD)[:, None], hidden, new), None

    start = jnp.zeros((len(letters), params["enc_w_hh"].shape[1]), reads.dtype)
    return lax.scan(step, start, letters.T)[0]


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Of the next phoneme, `[..., phonemes]`."""
    return hidden @ params["fc_w"].T + params["fc_b"]


def cross_entropy(params: Params, words: Words) -> jax.Array:
    """Of the first pronunciation, given all phonemes before each; the mean over phonemes."""
    said = words.said[:, 0]
    before = jnp.pad(said[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    reads = table(params, "dec")

    def step(hidden: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = unit(reads[at], hidden, params["dec_w_hh"], params["dec_b_hh"])
        return hidden, hidden

    _, states = lax.scan(step, encoded(params, words.letters), before.T)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, states), said.T)
    return jnp.mean(losses, where=said.T != PAD)


def decode(params: Params, letters: jax.Array, steps: int) -> jax.Array:
    """The phonemes that greedy decoding says, int8 `[n, steps]`: `END`, then `PAD` behind it."""
    reads = table(params, "dec")

    def step(carry: Carry, _: None) -> tuple[Carry, jax.Array]:
        hidden, last = carry
        hidden = unit(reads[last], hidden, params["dec_w_hh"], params["dec_b_hh"])
        likely = jnp.argmax(logits(params, hidden), -1).astype(jnp.int8)
        ended = (last == END) | (last == PAD)
        said = jnp.where(ended, jnp.int8(PAD), likely)
        return (hidden, said), said

    start = encoded(params, letters), jnp.full(len(letters), START, jnp.int8)
    return lax.scan(step, start, length=steps)[1].T


def word_error(params: Params, words: Words) -> jax.Array:
    """The part of the words whose decoded phonemes are none of their pronunciations."""
    found = decode(params, words.letters, words.said.shape[-1])
    right = jnp.any(jnp.all(words.said == found[:, None], -1), -1)
    return jnp.mean((~right).astype(jnp.float32))
