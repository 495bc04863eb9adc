"""Repeated spans are cut in whole sentences, and what is left reads as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from data_prep.core.shuffle import Shuffle
from data_prep.dedup import main
from data_prep.deduplication.cuts import SpanFilter, cuts_of
from data_prep.deduplication.spans import RepeatedSpans
from data_prep.documents.reading import write_documents
from recipe.base.strict import load_json
from tests.conftest import documents_in
from tests.data_prep.job_server import run_job
from tests.data_prep.test_jobs import contents

PASSAGE = "温故而知新，可以为师矣。学而不思则罔，思而不学则殆。知之者不如好之者，好之者不如乐之者。三人行，必有我师焉。"


def cut(text: str, span: str) -> str:
    """What is cut of a text of which one span is repeated."""
    start = text.index(span)
    cuts = cuts_of(text, np.array([start]), np.array([start + len(span)]))
    return "|".join(text[first:last] for first, last in cuts)


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("He said so. One two three. Four five six. Then he went.", "so. One two three. Four five six. Then", "One two three. Four five six. "),
        ("前面的话。甲乙丙丁。戊己庚辛。后面的话。", "话。甲乙丙丁。戊己庚辛。后", "甲乙丙丁。戊己庚辛。"),
        ("前。\n甲乙丙丁。\n后面", "甲乙丙丁。", "甲乙丙丁。\n"),
        ("the alphabet one two three four gamma", "bet one two three four gam", " one two three four "),
        ("一甲乙丙丁戊己庚辛二", "甲乙丙丁戊己庚辛", "甲乙丙丁戊己庚辛"),
        ("aa abcdefgh bb", "bcdefg", ""),
        ("A. Bc. And a long sentence that ends elsewhere.", "Bc. And a long sentence that en", "Bc. And a long sentence that "),
    ],
    ids=["sentences", "chinese", "line", "words", "han", "inside_a_word", "mostly_no_whole_sentence"],
)  # fmt: skip
def test_a_span_is_cut_in_whole_sentences_or_else_words(text, span, expected):
    assert cut(text, span) == expected


def run(tmp_path, texts: list[str], settings: str, name: str = "out", kinds: Sequence[str] = ()):
    source, config, output = tmp_path / "in.jsonl", tmp_path / "dedup.yaml", tmp_path / name
    kinds = kinds or ["prose"] * len(texts)
    rows = zip(texts, kinds, strict=True)
    write_documents(source, [{"id": str(i), "text": text, "kind": kind} for i, (text, kind) in enumerate(rows)])
    config.write_text(f"repeated_spans: {settings}\n")
    words = ["--input", source, "--output", output, "--config", config, "--workers", 1]
    assert main([str(word) for word in words]) == 0
    return [document["text"] for document in documents_in(output)], load_json(output / "manifest.json")["counts"]


def test_the_job_cuts_all_copies_but_the_first_and_counts(tmp_path):
    own = [" ".join(f"{name}{i}" for i in range(60)) + "." for name in "abc"]
    texts = [f"{own[0]} {PASSAGE}", f"{own[1]} {PASSAGE}{own[2]}", f"短。{PASSAGE}"]
    kept, counts = run(tmp_path, texts, "{min_characters: 40, min_left: 60}")
    assert kept == [texts[0], f"{own[1]}\n{own[2]}"]
    assert (counts["in"], counts["out"], counts["dropped"]) == (3, 2, {"repeated_spans": 1})
    assert counts["repeated_spans"] == {"characters": 2 * len(PASSAGE), "documents": 2, "spans": 2}


def test_a_document_of_a_spared_kind_stays_whole_and_counts_as_before(tmp_path):
    own = [" ".join(f"{name}{i}" for i in range(60)) + "." for name in "abc"]
    texts = [f"{own[0]} 短", f"{own[1]} {PASSAGE}", f"{own[2]} {PASSAGE}"]
    config = "{min_characters: 40, min_left: 60, spared_kinds: [list, code]}"
    assert run(tmp_path, [texts[1], texts[2], texts[0]], config, "none")[0] == [texts[1], own[2], texts[0]]
    kept, counts = run(tmp_path, texts, config, "kinds", kinds=("prose", "code", "list"))
    assert (kept, counts["repeated_spans"]["documents"]) == (texts, 0)
    assert run(tmp_path, texts, config, "before", kinds=("prose", "code", "verse"))[0] == [*texts[:2], own[2]]


def test_spans_go_from_the_number_of_characters_on_that_is_asked_for(tmp_path):
    own = [" ".join(f"{name}{i}" for i in range(60)) + f" {name}." for name in "ab"]
    texts = [f"{own[0]} {PASSAGE}", f"{own[1]} {PASSAGE}另"]
    size = len(". " + PASSAGE)
    assert run(tmp_path, texts, f"{{min_characters: {size}}}", "equal")[0] == [texts[0], f"{own[1]}\n另"]
    assert run(tmp_path, texts, f"{{min_characters: {size + 1}}}", "more")[0] == texts


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    for part in range(3):
        texts = [f"{PASSAGE}{part}{i} " + " ".join(f"{part}-{i}-{n}" for n in range(40)) for i in range(4)]
        write_documents(
            tmp_path / "in" / f"{part}.jsonl", [{"id": f"{part}{i}", "text": t} for i, t in enumerate(texts)]
        )
    (tmp_path / "dedup.yaml").write_text("repeated_spans: {min_characters: 40}\n")
    words = ["data_prep/dedup.py", "--input", tmp_path / "in", "--config", tmp_path / "dedup.yaml"]
    for workers in (1, 3):
        done = run_job(*words, "--output", tmp_path / f"out-{workers}", "--workers", workers)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out-1") == contents(tmp_path / "out-3")
    assert load_json(tmp_path / "out-1" / "manifest.json")["counts"]["repeated_spans"]["documents"] == 11


def test_a_document_that_nothing_is_cut_from_stays_as_it_is(tmp_path):
    spans = Shuffle(tmp_path)
    none = {"document": np.zeros(0, np.uint64), "start": np.zeros(0, np.uint32), "stop": np.zeros(0, np.uint32)}
    spans.write(0, np.zeros(0, np.uint64), none)
    raw = b'{"id": "a",  "text": "short"}'
    assert SpanFilter(RepeatedSpans(), spans, 0).apply(0, raw, Counter()) is raw
