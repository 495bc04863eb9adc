"""Which language a text is in, without network: Chinese and Japanese by their script, the others by ELD-C.

ELD-C (Apache-2.0, its model of 60 languages compiled in) weighs n-grams of words. Its score tells a language of its
model from any other language and from noise: such text is `unknown`, not the nearest neighbour. Indonesian is Malay
to it. benchmarks/language.py compares it with other identifiers.

A text is judged in pieces spread over its length, so the share of a language is measured. Code, markup and foreign
names among Chinese sentences count as no language: a manual of Chinese prose around English code is Chinese.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache

import eldc
import opencc

from data_prep.curation.characters import native

EAST_ASIAN = ("zh", "ja")  # told by their script
LANGUAGES = frozenset({*eldc.LANGUAGES, *EAST_ASIAN})  # that a text can be identified as, ISO 639-1

_PIECE = 400  # characters that are judged together; ELD-C reads 1,000 bytes
_PIECES = 20  # at most, evenly spread
_MIN_SCORE = 0.4  # of 1: 99% of short English messages reach it, and none of 300 characters in an unknown language
_MIN_PROSE_SCORE = 0.7  # beside Chinese, where code must not count as English
MIN_PROSE_LETTERS = 0.85  # of visible characters: 95% of English paragraphs have more, three quarters of code fewer
_MIN_UNKNOWN_LETTERS = 0.75  # of visible characters: prose in an unknown language has more, tables and code have fewer
_MAX_WORD_LETTERS = 12  # on average, in such prose; lists of identifiers have longer ones
HAN_WEIGHT = 2.5  # one Chinese character says about what 2.5 Latin letters say, and a Korean one as much
TERMS_SHARE = 0.1  # of a page: Latin letters below it are terms in Chinese text, Han below it are terms in other text
_MAX_LATIN_TERMS = 0.8  # of the letters of Korean, Russian or Arabic text: terms, which are in no language
_KANA_SHARE = 0.5  # of Han and kana, at least, in Japanese prose
_SHORT_KANA_SHARE = 0.05  # the same in titles and sentences, which are in one language, if no character is Chinese only
_SHORT = 100  # Han and kana
_CHINESE_WORDS = frozenset("這們您妳她嗎麼很呢吧啊")  # in most traditional texts, in next to no Japanese one
_JIS_LEVEL_1 = b"\x98\x72"  # the last of the 2,965 common characters in Shift JIS

HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_UNIT = re.compile(r"[^\n。！？!?.]+[\n。！？!?.]*")  # a line or a sentence

eldc.init()
_DETECTOR = eldc.instance()
_DETECTOR.set_scores(1)


def identify_language(text: str) -> tuple[str, float]:
    """ISO 639-1 code, and its share of what is in any language, 0 to 1. `unknown` and 0 where no language leads."""
    return leading_language(language_shares(text))


def leading_language(shares: Mapping[str, float]) -> tuple[str, float]:
    """The language of the largest share, and its share; `unknown` and 0 where none leads."""
    language = max(shares, key=shares.__getitem__, default="unknown")
    return (language, 0.0) if language == "unknown" else (language, shares[language])


def language_shares(text: str) -> dict[str, float]:
    """ISO 639-1 code, or `unknown`, -> its share of what is in any language; nothing where nothing is."""
    sample = _sample(text)
    han, kana, _, letters = native.script_counts(sample)
    east_asian, others = (han + kana) * HAN_WEIGHT, letters - han - kana
    contents = defaultdict[str, float](float)
    if han + kana:
        japanese = _japanese_share(sample, han, kana)
        contents["ja"], contents["zh"] = east_asian * japanese, east_asian * (1 - japanese)
    if others > TERMS_SHARE * east_asian:
        mixed = east_asian > TERMS_SHARE * others
        for language, content in _other_languages(_other_units(sample) if mixed else sample, prose_only=mixed):
            contents[language] += content
    total = sum(contents.values())
    return {language: content / total for language, content in contents.items()} if total else {}


def prose_language(text: str) -> str | None:
    """The language of a sentence that is written in one, of any script but Han and kana; None of code and names."""
    detected = _DETECTOR.detect_details(text)
    return detected.language if detected.scores.get(detected.language, 0.0) >= _MIN_PROSE_SCORE else None


def likeliest_language(words: str) -> str:
    """The language that words are most likely in, of any script but Han and kana."""
    return _DETECTOR.detect_details(words).language


def _sample(text: str) -> str:
    """All of the text or pieces spread over it."""
    if len(text) > _PIECES * _PIECE:
        step = (len(text) - _PIECE) / (_PIECES - 1)
        text = "".join(text[start : start + _PIECE] for start in (int(i * step) for i in range(_PIECES)))
    return readable(text)


def readable(text: str) -> str:
    """The text without what ELD-C cannot read: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")


def _japanese_share(sample: str, han: int, kana: int) -> float:
    """Of Han and kana; the rest is Chinese."""
    if kana == 0 and han <= _SHORT:
        return float(_has_japanese_forms(sample))
    if han + kana > _SHORT or _has_chinese_forms(sample):
        return min(1.0, kana / (han + kana) / _KANA_SHARE)
    return float(kana > _SHORT_KANA_SHARE * (han + kana))


def _has_japanese_forms(sample: str) -> bool:
    """Whether the Han characters are common Japanese ones, but neither all simplified nor all traditional Chinese."""
    characters = "".join(HAN_OR_KANA.findall(sample))
    if not _encodes(characters, "shift_jis") or any(c.encode("shift_jis") > _JIS_LEVEL_1 for c in characters):
        return False
    return not _encodes(characters, "gb2312") and not _encodes(characters, "big5")


def _has_chinese_forms(sample: str) -> bool:
    """Whether Han characters are none that Japanese is written with: its kana may be quoted, or be a shop's の.

    Names of Japan have characters beyond the encodings (𠮷野家), and an old form (森鷗外) or several beside a reformed
    one (慶應義塾大学).
    """
    han = {character for character in "".join(HAN_OR_KANA.findall(sample)) if not "\u3040" <= character <= "\u30ff"}
    if any(_encodes(c, "gb2312") and not _encodes(c, "cp932") and not _encodes(c, "shift_jis_2004") for c in han):
        return True  # simplified
    return _encodes("".join(han), "big5") and bool(han & _CHINESE_WORDS or len(han & _reformed_characters()) > 1)


@cache
def _reformed_characters() -> frozenset[str]:
    """Traditional characters that OpenCC writes otherwise in Japanese."""
    han = [chr(code) for code in range(0x4E00, 0xA000)]
    japanese = opencc.OpenCC("t2jp").convert("\n".join(han)).split("\n")
    return frozenset(old for old, new in zip(han, japanese, strict=True) if old != new)


def _encodes(characters: str, encoding: str) -> bool:
    try:
        characters.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _other_units(sample: str) -> str:
    """The sentences and lines that are not mostly Chinese or Japanese, without the characters of these."""
    units = []
    for unit in _UNIT.findall(sample):
        han, kana, _, letters = native.script_counts(unit)
        if (han + kana) * HAN_WEIGHT < letters - han - kana:
            units.append(HAN_OR_KANA.sub(" ", unit) if han + kana else unit)
    return "".join(units)


def _other_languages(sample: str, prose_only: bool) -> Iterator[tuple[str, float]]:
    """Language and letters of each piece, of all scripts but Han and kana."""
    for piece in _pieces(sample):
        han, kana, latin, letters = native.script_counts(piece)
        letters -= han + kana
        if letters == 0:
            continue
        detected = _DETECTOR.detect_details(piece)
        language, score = detected.language, detected.scores.get(detected.language, 0.0)
        letter_share = letters / (len(piece) - piece.count(" ") - piece.count("\n"))
        if score < _MIN_SCORE:
            words = latin < letters / 2 or (not prose_only and letters <= _MAX_WORD_LETTERS * len(piece.split()))
            if words and letter_share >= _MIN_UNKNOWN_LETTERS:
                yield "unknown", letters
        elif language in EAST_ASIAN:
            continue  # counted by script
        elif not prose_only or (score >= _MIN_PROSE_SCORE and letter_share >= MIN_PROSE_LETTERS):
            content = letters - latin if latin < _MAX_LATIN_TERMS * letters else letters
            yield language, content * (HAN_WEIGHT if language == "ko" else 1)


def _pieces(sample: str) -> Iterator[str]:
    """Lines together, or parts of a long line."""
    start = 0
    while start < len(sample):
        end = start + _PIECE
        if end < len(sample):
            end = sample.rfind("\n", start + _PIECE // 4, end) + 1 or end
        yield sample[start:end]
        start = end
