"""Long spans that stand elsewhere before are found, as a plain suffix array finds them."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_prep.core import shuffle
from data_prep.core.shuffle import Shuffle, column, scatter
from data_prep.curation.characters import native
from data_prep.deduplication import spans
from data_prep.deduplication.signatures import RECORD_BITS
from data_prep.documents.reading import Part, write_documents
from tests.conftest import ROOT

PRIME = (1 << 61) - 1
BASES = (0x1E3779B97F4A7C15, 0x02B2AE3D27D4EB4F)


def plain_hash(window: str, base: int) -> int:
    total = sum((ord(char) + 1) * pow(base, power, PRIME) for power, char in enumerate(reversed(window)))
    return int(scatter(np.array([total % PRIME], np.uint64))[0])


def plain_anchors(text: str, window: int) -> list[tuple[int, int, int]]:
    hashes = [plain_hash(text[at : at + window], BASES[0]) for at in range(len(text) - window + 1)]
    rows = (range(at, at + window) for at in range(len(hashes) - window + 1))
    places = sorted({min(row, key=lambda at: (hashes[at], -at)) for row in rows})
    return [(hashes[at], plain_hash(text[at : at + window], BASES[1]) & 0xFFFFFFFF, at) for at in places]


@pytest.mark.parametrize("letters", ["ab", "a", "漢字é x😀"])
@pytest.mark.parametrize("window", [1, 2, 7])
def test_anchors_are_those_of_the_plain_definition(letters, window):
    draw = random.Random(window)
    for size in (0, window, 2 * window - 2, 2 * window - 1, 60):
        text = "".join(draw.choices(letters, k=size))
        found = native.anchors(text, window)
        assert list(zip(*(values.tolist() for values in found), strict=True)) == plain_anchors(text, window)


@pytest.mark.parametrize("text", ["", "漢字é x😀漢字é x", "\x00" * 8])
def test_the_hashes_of_windows_are_those_of_the_plain_definition(text):
    plain = [[plain_hash(text[at : at + 7], base) for at in range(len(text) - 6)] for base in BASES]
    assert [values.tolist() for values in native.windows(text, 7)] == plain


def test_texts_that_collide_modulo_a_power_of_two_have_different_hashes():
    """Thue–Morse words agree in every polynomial modulo 2**64."""
    word = "a"
    for _ in range(11):
        word += word.translate({97: "b", 98: "a"})
    other = word.translate({97: "b", 98: "a"})
    assert [key[0] for key in native.windows(word, len(word))] != [key[0] for key in native.windows(other, len(word))]


def mixed_documents(seed: int, count: int = 12) -> list[str]:
    """Texts of letters drawn at random, with passages and parts of passages of 30 to 130 characters that several have."""
    draw = random.Random(seed)
    passages = ["".join(draw.choices("的一是了我不人在他有", k=draw.randrange(30, 131))) for _ in range(4)]

    def own() -> str:
        return "".join(draw.choices("abcdefghijklmnop", k=draw.randrange(20, 60)))

    def passage() -> str:
        text = draw.choice(passages)
        start = draw.choice([0, 0, draw.randrange(30)])
        return text[start : draw.choice([len(text), start + draw.randrange(38, 44)])]

    return [own() + "".join(passage() + own() for _ in range(draw.randrange(4))) for _ in range(count)]


def few_letters(seed: int) -> list[str]:
    """Texts that overlap themselves: runs of one character, of a short word, of two letters."""
    draw = random.Random(seed)
    words = ["a", "ab", "aab", "".join(draw.choices("ab", k=50))]
    return ["".join(draw.choice(words) * draw.randrange(60) for _ in range(4)) for _ in range(8)]


def natural_texts(seed: int) -> list[str]:
    """Lines of this repository's documentation, of which texts have several in common."""
    draw = random.Random(seed)
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line][:60]
    return [" ".join(draw.choices(lines, k=6)) for _ in range(8)]


def repeated_before(texts: list[str], least: int) -> list[list[tuple[int, int]]]:
    """The spans of each text that `least` characters cover that stand elsewhere before: by a plain suffix array."""
    ends = np.cumsum([len(text) + 1 for text in texts])
    whole = "".join(f"{text}{chr(0xE000 + i)}" for i, text in enumerate(texts))  # ends that no other has
    suffixes = sorted(range(len(whole)), key=lambda at: whole[at:])
    before = np.ones(len(whole), bool)
    # of neighbours in the array with as many characters in common, the first in the text has none before
    same = (whole[a : a + least] == whole[b : b + least] for a, b in pairwise(suffixes))
    groups = np.cumsum([0, *(not equal for equal in same)])
    for group in np.split(np.array(suffixes), np.flatnonzero(np.diff(groups)) + 1):
        before[group.min()] = False
    before[len(whole) - least + 1 :] = False
    marks = np.zeros(len(whole), bool)
    for at in np.flatnonzero(before).tolist():
        marks[at : at + least] = True
    return [runs(marks[end - len(text) - 1 : end - 1]) for end, text in zip(ends, texts, strict=True)]


def runs(marks: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], marks.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def spans_of(texts: list[str], config: spans.RepeatedSpans, folder: Path) -> list[list[tuple[int, int]]]:
    """The spans that the pass finds in each text; the texts lie in two parts."""
    half, parts = len(texts) // 2, []
    for number, group in enumerate((texts[:half], texts[half:])):
        parts.append(Part(folder / f"{number}.jsonl"))
        write_documents(parts[-1].path, [{"id": str(i), "text": text} for i, text in enumerate(group)])

    def run(_: str, task: Callable[..., Any], items: list[Any], *_more: Any) -> list[dict[str, Any]]:
        return [task(item, number) for number, item in enumerate(items)]

    def all_stay(number: int) -> tuple[pa.Table, np.ndarray]:
        size = (half, len(texts) - half)[number]
        return pa.table({"record": pa.array(range(size), pa.uint64())}), np.full(size, -1, np.int8)

    table = spans.find_spans(run, lambda name: Shuffle(folder / name), parts, config, all_stay).read(0, 1)
    result: list[list[tuple[int, int]]] = [[] for _ in texts]
    rows = (column(table, name).tolist() for name in ("document", "start", "stop"))
    for document, start, stop in sorted(zip(*rows, strict=True)):
        result[(document >> RECORD_BITS) * half + (document & ((1 << RECORD_BITS) - 1))].append((start, stop))
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [mixed_documents, few_letters, natural_texts])
@pytest.mark.parametrize("least", [32, 41])
def test_spans_are_those_of_a_suffix_array(make, seed, least, tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "_CHUNK_ROWS", 400)
    monkeypatch.setattr(shuffle, "PARTITION_BYTES", 20_000)  # several ranges
    texts = make(seed)
    expected = repeated_before(texts, least)
    assert sum(stop - start for pairs in expected for start, stop in pairs) > 200
    assert spans_of(texts, spans.RepeatedSpans(min_characters=least), tmp_path) == expected


def test_of_a_text_that_repeats_itself_one_period_stays(tmp_path):
    period = "".join(random.Random(1).choices("abcdefgh", k=50))
    assert spans_of([period * 4, "x"], spans.RepeatedSpans(min_characters=32), tmp_path) == [[(50, 200)], []]


def test_spans_that_touch_are_one():
    starts = np.array([3, 7, 13, 24])
    assert spans.joined(starts, starts + 10) == [(3, 23), (24, 34)]
    assert spans.joined(np.array([3, 13, 23]), np.array([13, 23, 33])) == [(3, 33)]
