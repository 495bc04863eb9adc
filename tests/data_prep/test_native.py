"""Each native scan gives what its plain reference gives, on real kinds of text and on random ones."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest

from data_prep import characters as c
from data_prep.characters import native
from tests.conftest import SHARED, needs_shared
from tests.data_prep import reference

TEXTS = [
    "",
    "\n\n \t\n",
    "The old ship, don't you see?  Two  blanks,\ttabs...\n\n\n\nand 2026 lines\u2026 ’tis it’s\n",
    "清晨，青石镇的船长看着潮水。Python 代码：\n    return x[1:]  # 注释\n清晨,潮水(水)\n",
    "- one\n- two\n* three\n\none two one two one two one two one two\n\n- one\n- two\n* three\n",
    "mixed中文English混排123 ¿ña? 🙂👩\u200d👩 e\u0301 \ufeffカタカナ ひらがな ＡＢ {x} \ue000 \ufffd\r\nend\r",
    "a" * 5000 + " " + "漢" * 3000 + "\n" + "same line of text here\n" * 30,
]


def random_texts(number: int) -> list[str]:
    rng = random.Random(7)
    alphabet = "aAbé0 9  \n\n\t.#-!?。，'’{漢汉体カあ🙂\u00a0\u3000\u0301\ufffd\r\u200b…"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(400))) for _ in range(number)]


def real_texts() -> list[str]:
    texts = []
    for path in sorted((SHARED / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            texts += [json.loads(line)["text"][:5000] for _, line in zip(range(5), handle, strict=False)]
    return texts


def check(text: str) -> None:
    drawn = np.random.default_rng(3).integers(0, 1 << 32, 40)
    multipliers, offsets = (drawn[:20] | 1).tolist(), drawn[20:].tolist()
    signer = native.Signer(5, multipliers, offsets)
    assert signer.shingles(text).tolist() == reference.shingles(text, 5)
    assert signer.sign(text).tolist() == reference.signature(text, 5, multipliers, offsets)
    assert native.normalize_layout(text) == reference.normalize_layout(text)
    stop_words, traditional = ["the", "don't", "的", "汉"], ["漢", "體"]
    meter = native.Meter({native.word_hash(w) for w in stop_words}, {ord(ch) for ch in traditional})
    measured = dict(zip(native.STATISTICS, meter.measure(text), strict=True))
    expected = reference.statistics(text, stop_words, traditional)
    assert list(measured) == list(expected)
    assert measured == pytest.approx(expected)


@pytest.mark.parametrize("text", TEXTS)
def test_scans_equal_their_references(text):
    check(text)


def test_scans_equal_their_references_on_random_texts():
    for text in random_texts(300):
        check(text)


@needs_shared
def test_scans_equal_their_references_on_real_texts():
    texts = real_texts()
    assert len(texts) == 50
    for text in texts:
        check(text)


def test_word_hashes_ignore_case():
    assert native.word_hash("Straße") == reference.word_hash("straße") == native.word_hash("STRAßE")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("A  b\nC", " a b c ", True),
        ("a b", "ab", False),
        ("a b", "a c", False),
        ("ab" * 1000, "ab" * 1001, False),
        ("", " \n", True),
    ],
)
def test_the_exact_hash_ignores_case_and_blanks_alone(one, other, equal):
    assert (native.exact_hash(one).tolist() == native.exact_hash(other).tolist()) == equal


def test_overlap_finds_exactly_the_ngrams_of_its_set():
    signer = native.Signer(3, [], [])
    overlap = native.Overlap(3, signer.shingles("one two three four"))
    assert overlap.find("zero one TWO three, four five").tolist() == signer.shingles("one two three four").tolist()
    assert overlap.find("one two four three").size == 0
    assert native.Overlap(3, np.zeros(0, np.uint64)).find("one two three").size == 0


def test_lines_of_too_few_or_too_long_words_go():
    text = "one two three\nshort\n\nfour five " + "x" * 20 + "\nsix seven eight"
    assert native.keep_lines(text, 3, 10) == ("one two three\n\nsix seven eight", 2)
    assert native.keep_lines(text, 0, 1000) == (text, 0)


def test_line_hashes_ignore_case_and_blanks_and_know_empty_lines():
    hashes, lengths = native.line_hashes("Same  Line\n\nsame line \nother")
    assert hashes[0] == hashes[2] != hashes[3]
    assert (hashes[1], lengths.tolist()) == (0, [9, 0, 9, 5])


def test_letters_are_counted_by_script():
    assert native.script_counts("abc 漢字 かな 1é") == (2, 2, 4, 8)


@pytest.mark.parametrize(("text", "pairs"), [("café “quoted” ça", 0), ("cafÃ© â€œquotedâ€\x9d", 4), ("ä¸\xadæ–‡", 2)])
def test_mojibake_is_noticed(text, pairs):
    assert (native.mojibake_pairs(text) > 0) == (pairs > 0)


def test_a_lone_surrogate_is_an_error_and_no_crash():
    with pytest.raises(UnicodeEncodeError):
        native.exact_hash("\ud800")


def test_character_classes_do_not_depend_on_the_version_of_python():
    assert c.classes()[[ord("a"), ord("Z"), ord("5"), ord("汉"), 0x3000, ord("。"), 0x301, ord("$")]].tolist() == [
        c.LETTER, c.LETTER | c.UPPER, c.NUMBER, c.LETTER | c.HAN, c.SPACE, c.PUNCTUATION, c.MARK, c.SYMBOL,
    ]  # fmt: skip
    assert c.classes()[ord("🙂")] == c.SYMBOL  # later than the database: a pictograph
    assert c.classes()[0x1C90] == c.LETTER  # later than the database: Georgian capitals
    assert c.lower()[ord("É")] == ord("é")
