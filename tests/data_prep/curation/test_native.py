"""Each native scan gives what its plain reference gives, on real kinds of text and on random ones."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest

from data_prep.curation import characters as c
from data_prep.curation.characters import native
from tests.conftest import SHARED, needs_shared
from tests.data_prep.curation import reference, reference_layout

TEXTS = [
    "",
    "\n\n \t\n",
    "The old ship, don't you see?  Two  blanks,\ttabs...\n\n\n\nand 2026 lines\u2026 ’tis it’s\n",
    "清晨，青石镇的船长看着潮水。Python 代码：\n    return x[1:]  # 注释\n清晨,潮水(水)\n",
    "- one\n- two\n* three\n\none two one two one two one two one two\n\n- one\n- two\n* three\n",
    "mixed中文English混排123 ¿ña? 🙂👩\u200d👩 e\u0301 \ufeffカタカナ ひらがな ＡＢ {x} \ue000 \ufffd\r\nend\r",
    "看：\n```py\nx = {1: '甲'}\n\n价格是3.14.\n```\n见 https://x.org/a_b(1)，或用 `a = b`.\n| a | b |\n|---|---|\n~~~\nopen\n",
    "他说,你好.\n\n“走吧.”\n一.总则\n比例为3:1,时间:12:30;好!准确率98%,优于它(甲).\n张三：好。\n    if x:\n        f(x)\n    else:\n        g()\n    }\n",
    "1. one\n(2) two\na) b\n① c\n> d\n+ e\n* f\n**g**\n--h\n1.2 i\nH@d Da5hwood Ã© â€œ Â x\nno. 5... Wait?! 1st 3D $5 12345678\nA line of ten words that has no full stop behind it at all\n",
    "2023-06-11 03:12:44.018 INFO 汉\n[06-11] 汉　语 文\n12月1日 汉语\n1月2 日\n6/11/2023 x\n2023.1.2\n2023-1/2 123:45 1:234 1-2-3\n12楼 顶!\n"
    "13楼 顶！！\n第10：30分\n在 10:30 到了。\n型号：62A 单价\n型号：63A 单价\n",
    "a b a b aa. A Aa 3 of it, a Bb 4 of it! " * 9 + "Paris is far from Rome. Lyon is far from Rome. " * 9,
    "a" * 5000 + " " + "漢" * 3000 + "\n" + "same line of text here\n" * 30,
]


def random_texts(number: int) -> list[str]:
    rng = random.Random(7)
    alphabet = "aAbé0 9  \n\n\t.#-!?。，'’{漢汉体カあ🙂\u00a0\u3000\u0301\ufffd\r\u200b…"
    strange = "\v\f\x1c\x1f\x85\u2028\u2029\x00\x9f\xad\u200c\u200d\u200e\u202e\u2066\u2060\ufe0f\ufeff\ufffe\U000e0067\U000e0101"
    code = "ab1  \n`~|{}=();:/.,-_<>$#汉。，“》%)\t!?一"
    dates = "1223 :-/.月日：\n汉"
    alphabets = [alphabet, alphabet + strange, "ab'’. \n漢" + strange, code, code + "  \n汉汉a1", dates]
    return ["".join(rng.choice(alphabets[i % 6]) for _ in range(rng.randrange(400))) for i in range(number)]


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
    assert native.prose(text) == reference_layout.prose(text)
    assert native.shape(text) == reference_layout.shape(text)
    assert native.widen_punctuation(text) == reference_layout.widen_punctuation(text)
    for codes, most in (([0x301, 0x200B, 0x6F22], 2), ([0x301, 0xFE0F, 0x1F642], 1)):
        assert native.Rows(codes, most).cut(text) == reference.cut_rows(text, codes, most)
    for whole_words in (False, True):
        phrases = ["a", "Aa", "aa b", "漢汉", "汉", "É", "a.", "ab'a"]
        assert native.Phrases(phrases, whole_words).find(text) == reference.matches(text, phrases, whole_words)
    stop_words, traditional = ["the", "don't", "的", "汉"], ["漢", "體"]
    odd_pairs = [("the", "don't"), ("a", "b"), ("a", "aa")]
    meter = native.Meter(
        {native.word_hash(w) for w in stop_words},
        {ord(ch) for ch in traditional},
        [(native.word_hash(a), native.word_hash(b)) for a, b in odd_pairs],
    )
    measured = dict(zip(native.STATISTICS, meter.measure(text), strict=True))
    expected = reference.statistics(text, stop_words, traditional, odd_pairs)
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


def test_exact_hashes_are_equal_where_the_visible_texts_are():
    texts = [text[:6] for text in random_texts(600)]
    exact: dict[str, set[tuple[int, ...]]] = {}
    for text in texts:
        exact.setdefault(reference.exact_text(text), set()).add(tuple(native.exact_hash(text).tolist()))
    assert all(len(hashes) == 1 for hashes in exact.values())
    assert len(set.union(*exact.values())) == len(exact) < len(set(texts))


INVISIBLE_INSIDE = [
    "\xad",
    "\u200b",
    "\u200c",
    "\u200d",
    "\u200f",
    "\u202b",
    "\u2060",
    "\u2069",
    "\ufe0f",
    "\ufeff",
    "\U000e0100",
]


@pytest.mark.parametrize("char", INVISIBLE_INSIDE, ids=ascii)
def test_an_invisible_character_inside_a_word_changes_no_scan(char):
    plain, text = "one two three don't, four", f"one t{char}wo thr{char}{char}ee do{char}n{char}'{char}t, four{char}"
    signer = native.Signer(2, [1, 3], [5, 7])
    assert signer.shingles(text).tolist() == signer.shingles(plain).tolist()
    assert signer.sign(text).tolist() == signer.sign(plain).tolist()
    assert native.exact_hash(text).tolist() == native.exact_hash(plain).tolist()
    assert [line.tolist() for line in native.line_hashes(text)] == [line.tolist() for line in native.line_hashes(plain)]
    assert native.word_hash(f"t{char}wo") == native.word_hash("two")
    meter = native.Meter({native.word_hash("three")}, set())
    other = {"characters", "mean_word_length", "longest_word"}  # count what is there
    for name, value, expected in zip(native.STATISTICS, meter.measure(text), meter.measure(plain), strict=True):
        assert value == expected or name in other, name


def test_rows_are_cut_wherever_they_stand():
    rng, codes = random.Random(1), [0x301, 0x20D0, 0x1D165]
    changed = 0
    for most in (1, 2, 3, 5) * 300:
        parts = ["".join(rng.choices("\u0301\u20d0\U0001d165", k=rng.randrange(most + 4))) for _ in range(6)]
        text = "".join(rng.choice("aé漢🙂") * rng.randrange(3) + part for part in parts)
        cut = native.Rows(codes, most).cut(text)
        assert cut == reference.cut_rows(text, codes, most)
        changed += cut != text
    assert 0 < changed < 1200


def test_phrases_are_found_where_they_stand():
    assert native.Phrases(["istanbul", "x"], False).find("İİ İSTANBUL x") == [(3, 11), (12, 13)]
    assert native.Phrases(["bask\xadet"], True).find("a bas\u200dket, baskets") == [(2, 9)]
    assert native.Phrases(["ΟΔΟΣ"], True).find("οδος") == [(0, 4)]
    nested = native.Phrases(["abcd", "bc", "c", "bce"], False)
    assert nested.find("abcbce") == [(1, 3), (2, 3), (3, 5), (4, 5), (3, 6)]
    assert native.Phrases([], False).find("a") == native.Phrases(["", "\xad"], False).find("a") == []


def test_a_long_phrase_list_is_found_like_a_short_one():
    rng = random.Random(3)
    words = ["".join(rng.choices("abcde漢字", k=rng.randrange(2, 9))) for _ in range(3000)]
    text = " ".join(rng.choices(words, k=50)) + "".join(rng.choices("abcde漢字", k=300))
    expected = [
        (start, start + len(word)) for word in set(words) for start in range(len(text)) if text.startswith(word, start)
    ]
    assert sorted(native.Phrases(words, False).find(text)) == sorted(expected)


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


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("café “quoted” ça", 0),
        ("cafÃ© â€œquotedâ€\x9d", 4),
        ("ä¸\xadæ–‡", 2),
        ("don\x92t", 1),
        ("line\x85end", 0),
    ],
)
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
