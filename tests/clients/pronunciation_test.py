"""The network and the dictionary of the packages, as they are installed."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import measure
from benchmarks.g2p import dictionary, network, record
from benchmarks.g2p.dictionary import LETTERS, PHONEMES
from benchmarks.g2p.rounding import deployed

KNOWN = {"window": "W IH1 N D OW0", "network": "N EH1 T W ER2 K", "cat": "K AE1 T"}


def test_the_pretrained_network_pronounces_words():
    batch = dictionary.encode({word: [said.split()] for word, said in KNOWN.items()})
    decoded = network.decode(dictionary.pretrained(), batch.letters, batch.said.shape[-1])
    for row, said in zip(decoded, KNOWN.values(), strict=True):
        assert [PHONEMES[one] for one in row if one] == [*said.split(), "</s>"]


def test_the_splits_have_no_word_in_common_and_are_those_of_the_record():
    splits = dictionary.load()
    spelled = [
        {"".join(LETTERS[one] for one in row) for row in jax.device_get(words.letters).tolist()}
        for words in splits
    ]
    sizes = [len(words.letters) for words in splits]
    assert [len(found) for found in spelled] == sizes == measure.load("g2p")["sizes"]
    assert len(set.union(*spelled)) == sum(sizes)


def test_the_word_errors_of_the_record_are_those_of_the_packages():
    params, test = dictionary.pretrained(), dictionary.load().test
    assert sum(leaf.size for leaf in params.values()) == measure.load("g2p")["parameters"]
    published = {row["format"]: row["score"] for row in measure.load("g2p")["untouched"]}
    score = jax.jit(network.word_error)
    # A digit of rounding may tip a word or two.
    assert float(score(params, test)) == pytest.approx(published["float32"], abs=2e-3)
    for form in (record.MAIN, record.SECOND):
        found = float(score(deployed(params, form), test))
        assert found == pytest.approx(published[form.name], abs=5e-3)
        assert found > published["float32"]
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in params.values())
