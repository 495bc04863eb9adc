"""Plain Python of the native n-gram scan: the same definitions, one obvious loop each."""

from __future__ import annotations

import math
from collections import Counter

from data_prep.curation import characters as c
from tests.data_prep.curation.reference import LINE_ENDS, MASK, START, alone, class_of, is_space, lower, mix, visible

BASE, WORD_STEP = 0xD1342543DE82EF95, 0x100000001B3
CHARACTERS, WORDS = 1, 2


def symbols(text: str) -> tuple[list[int], list[int]]:
    """Code points of the characters as their n-grams see them, and hashes of the words."""
    characters: list[int] = []
    words: list[int] = []
    word: list[str] = []
    blank = ""

    def end_word() -> None:
        if word:
            words.append(word_hash(word))
            word.clear()

    for char in visible(text):
        if is_space(char):
            blank = "\n" if blank == "\n" or char in LINE_ENDS else " "
            end_word()
            continue
        characters += map(ord, blank)
        blank = ""
        characters.append(ord("0") if class_of(char) & c.NUMBER else ord(char))
        if alone(char):
            end_word()
            words.append(mix(((START ^ ord(char)) * WORD_STEP) & MASK))
        elif class_of(char) & (c.LETTER | c.NUMBER | c.MARK):
            word.append(char)
        else:
            end_word()
    end_word()
    return characters, words


def word_hash(word: list[str]) -> int:
    hashed = START
    for char in word:
        hashed = ((hashed ^ lower(char)) * WORD_STEP) & MASK
    return mix(hashed)


def ngrams(row: list[int], least: int, most: int, kind: int) -> list[int]:
    """Polynomials of the last n symbols at each place. The seed of the kind stands before a whole n-gram."""
    found = []
    for place in range(len(row)):
        for n in range(least, most + 1):
            value = mix(kind) if place + 1 >= n else 0
            for symbol in row[max(0, place + 1 - n) : place + 1]:
                value = (value + symbol) * BASE & MASK
            found.append(value)
    return found


def values(text: str, characters: tuple[int, int], words: tuple[int, int], bits: int) -> dict[int, float]:
    """Bucket -> sqrt(its share of the n-grams)."""
    character_row, word_row = symbols(text)
    hashes = ngrams(character_row, *characters, CHARACTERS) + ngrams(word_row, *words, WORDS)
    counts = Counter(((value ^ value >> 32) * START & MASK) >> (64 - bits) for value in hashes)
    return {bucket: math.sqrt(count / len(hashes)) for bucket, count in counts.items()}
