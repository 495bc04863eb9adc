"""Long spans that stand elsewhere before are cut, as a plain suffix array finds them."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from data_prep.core.shuffle import Shuffle, scatter
from data_prep.curation.characters import native
from data_prep.dedup import main
from data_prep.deduplication.signatures import RECORD_BITS
from data_prep.deduplication.spans import RepeatedSpans, SpanFilter, covered, find_anchors, mark_repeated
from data_prep.documents.reading import Part, write_documents
from recipe.base.strict import load_json
from tests.conftest import documents_in

MASK = (1 << 64) - 1
BASES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


def plain_hash(window: str, base: int) -> int:
    total = 0
    for char in window:
        total = (total * base + int(scatter(np.array([(ord(char) + 1) ^ base], np.uint64))[0])) & MASK
    return int(scatter(np.array([total], np.uint64))[0])


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


def mixed_documents(seed: int, count: int = 12) -> list[str]:
    """Texts of letters drawn at random, with passages of 30 to 130 characters that several have."""
    draw = random.Random(seed)
    passages = ["".join(draw.choices("的一是了我不人在他有", k=draw.randrange(30, 131))) for _ in range(4)]
    own = lambda: "".join(draw.choices("abcdefghijklmnop", k=draw.randrange(20, 60)))  # noqa: E731
    return [own() + "".join(draw.choice(passages) + own() for _ in range(draw.randrange(4))) for _ in range(count)]


def repeated_before(texts: list[str], least: int) -> list[np.ndarray]:
    """For each character, whether it is in `least` characters that stand elsewhere before: by a plain suffix array."""
    whole = "\n".join(f"{text}{chr(0xE000 + i)}" for i, text in enumerate(texts))  # ends that no other has
    suffixes = sorted(range(len(whole)), key=lambda at: whole[at : at + least])
    earliest: dict[str, int] = {}
    for at in suffixes:
        earliest[whole[at : at + least]] = min(at, earliest.get(whole[at : at + least], at))
    marks = np.zeros(len(whole), bool)
    for at in range(len(whole) - least + 1):
        if earliest[whole[at : at + least]] < at:
            marks[at : at + least] = True
    edges = np.cumsum([0, *(len(text) + 2 for text in texts)])
    return [marks[start : start + len(text)] for start, text in zip(edges, texts, strict=False)]


def cuts_of(texts: list[str], config: RepeatedSpans, folder) -> list[np.ndarray]:
    """For each character of each text, whether the pass marks it; the texts lie in two parts."""
    anchors, marked, half = Shuffle(folder / "anchors"), Shuffle(folder / "marked"), len(texts) // 2
    for number, group in enumerate((texts[:half], texts[half:])):
        path = folder / f"{number}.jsonl"
        write_documents(path, [{"id": str(i), "text": text} for i, text in enumerate(group)])
        labels = pa.table({"record": pa.array(range(len(group)), pa.uint64())})
        fate = lambda _, labels=labels: (labels, np.full(labels.num_rows, -1, np.int8))  # noqa: E731
        find_anchors(Part(path), number, config=config, target=anchors, fate=fate)
    for partition in range(3):
        mark_repeated(partition, partition, source=anchors, partitions=3, target=marked)
    marks = [np.zeros(len(text), bool) for text in texts]
    for partition in range(3):
        rows = marked.read(partition, 3).to_pylist()
        for row in rows:
            part, record = row["document"] >> RECORD_BITS, row["document"] & ((1 << RECORD_BITS) - 1)
            marks[part * half + record][row["place"] : row["place"] + config.window] = True
    return marks


def runs(marks: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], marks.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_spans_are_those_of_a_suffix_array(seed, tmp_path):
    config = RepeatedSpans(min_characters=40)
    texts = mixed_documents(seed)
    cut = cuts_of(texts, config, tmp_path)
    long, allowed = repeated_before(texts, config.min_characters), repeated_before(texts, config.window)
    assert sum(marks.sum() for marks in long) > 200
    for marks, repeated, may in zip(cut, long, allowed, strict=True):
        assert not (marks & ~may).any()  # nothing else is cut
        for start, stop in runs(repeated):
            assert marks[start + config.window - 1 : stop - config.window + 1].all()
            assert marks[start:stop].any()


def test_windows_that_touch_are_one_span():
    assert covered(np.array([3, 7, 13, 24]), 10) == [(3, 23), (24, 34)]
    assert covered(np.array([3, 13, 23]), 10) == [(3, 33)]


def test_the_job_cuts_all_copies_but_the_first_and_counts(tmp_path):
    passage = (
        "温故而知新，可以为师矣。学而不思则罔，思而不学则殆。知之者不如好之者，好之者不如乐之者。三人行，必有我师焉。"
    )
    own = [" ".join(f"{name}{i}" for i in range(60)) for name in "abc"]
    texts = [f"{own[0]} {passage}", f"{own[1]} {passage} {own[2]}", f"短 {passage}"]
    source, config, output = tmp_path / "in.jsonl", tmp_path / "dedup.yaml", tmp_path / "out"
    write_documents(source, [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    config.write_text("repeated_spans: {min_characters: 40, min_left: 60}\n")
    words = ["--input", source, "--output", output, "--config", config, "--workers", 1]
    assert main([str(word) for word in words]) == 0
    kept = [document["text"] for document in documents_in(output)]
    counts = load_json(output / "manifest.json")["counts"]
    assert kept[0] == texts[0]
    assert kept[1].startswith(own[1])
    assert kept[1].endswith(own[2])
    assert len(kept[1]) < len(own[1]) + len(own[2]) + 2 * 20 + 2
    assert (counts["in"], counts["out"], counts["dropped"]) == (3, 2, {"repeated_spans": 1})
    assert counts["repeated_spans"]["documents"] >= 2


def test_a_document_that_nothing_is_cut_from_stays_as_it_is(tmp_path):
    marked = Shuffle(tmp_path)
    marked.write(0, np.zeros(0, np.uint64), {"document": np.zeros(0, np.uint64), "place": np.zeros(0, np.uint32)})
    raw = b'{"id": "a",  "text": "short"}'
    assert SpanFilter(RepeatedSpans(), marked, 0).apply(0, raw, Counter()) is raw
