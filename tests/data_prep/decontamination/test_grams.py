"""Sequences of words: the native scan against a plain reference, and what an item is looked for by."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_prep.curation.characters import native
from data_prep.decontamination.grams import folded_characters, word_sequences
from tests.data_prep.curation import reference

BASE = 0x9FB21C651E98DF25


def plain_words(text: str) -> list[tuple[int, int, int]]:
    """(hash, start, stop) of each word, its traditional characters as simplified ones."""
    folded = folded_characters()
    words = []
    for start, stop in reference.words(text):
        word = text[start:stop]
        if reference.alone(word[0]) and ord(word[0]) < len(folded):
            word = chr(folded[ord(word[0])])
        words.append((reference.word_hash(word), start, stop))
    return words


def plain_sequences(text: str, length: int) -> list[tuple[int, int, int]]:
    """(hash, start, stop) of each sequence of so many words."""
    words, found = plain_words(text), []
    for at in range(len(words) - length + 1):
        value = 0
        for word, _, _ in words[at : at + length]:
            value = (value * BASE + word) & reference.MASK
        found.append((reference.mix(value), words[at][1], words[at + length - 1][2]))
    return found


TEXTS = [
    "",
    "one TWO three, four five; one two three",
    "請問中國的首都在哪裡？请问中国的首都在哪里?",
    "a t\u200bwo \ufeffthree don't 漢字abc漢語 カタカナ 12漢34 \U00020000后後",
    "".join(random.Random(5).choices("ab 漢汉體体,。 \n\u200bÉé1", k=500)),
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("length", [1, 3, 8])
def test_sequences_are_those_of_the_reference(text, length):
    expected = plain_sequences(text, length)
    assert word_sequences().hashes(text, length).tolist() == [value for value, _, _ in expected]
    assert word_sequences().count(text) == len(reference.words(text))
    overlap = native.Overlap(folded_characters())
    overlap.add_ngrams(length, np.array(sorted({value for value, _, _ in expected}), np.uint64))
    assert overlap.find(text) == [(0, *sequence) for sequence in expected]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_wholes_of_several_lengths_with_one_beginning_are_all_found(text):
    lengths, least = (3, 4, 7), 3
    overlap = native.Overlap(folded_characters())
    wanted = {}
    for length in lengths:
        for value, start, stop in plain_sequences(text, length)[::2]:
            wanted[value] = (length, plain_sequences(text[start:stop], least)[0][0])
    hashes = np.array(list(wanted), np.uint64)
    sizes, prefixes = (np.array([row[i] for row in wanted.values()], np.uint64) for i in (0, 1))
    overlap.add_wholes(least, prefixes, sizes, hashes)
    expected = sorted(
        (start, stop, value) for n in lengths for value, start, stop in plain_sequences(text, n) if value in wanted
    )
    assert sorted((start, stop, value) for _, value, start, stop in overlap.find(text)) == expected


def test_an_empty_set_finds_nothing():
    overlap = native.Overlap(folded_characters())
    nothing = np.zeros(0, np.uint64)
    overlap.add_ngrams(2, nothing)
    overlap.add_wholes(2, nothing, nothing, nothing)
    assert overlap.find("one two three") == []


def test_many_hashes_are_found_and_others_are_not():
    inside, outside = (" ".join(f"{name}{i}" for i in range(20_000)) for name in ("in", "out"))
    overlap = native.Overlap(folded_characters())
    overlap.add_ngrams(3, word_sequences().hashes(inside, 3))
    assert len(overlap.find(inside)) == 20_000 - 2
    assert overlap.find(outside) == []


@pytest.mark.parametrize(
    ("one", "other"), [("漢語體", "汉语体"), ("臺灣", "台湾"), ("ABC", "abc"), ("a-b c", "a b, c")]
)
def test_spellings_of_one_text_are_alike(one, other):
    assert word_sequences().hashes(one, 1).tolist() == word_sequences().hashes(other, 1).tolist()
