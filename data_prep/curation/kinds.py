"""The kind of a text by its layout, so that verse is not judged by rules for prose.

The kinds: `prose`, the default; `verse`, short lines of words and marks; `dialogue`, lines that somebody says; `code`,
a page of prose with much code in it; `list`, items or terms with what is said of each. Each has rules of its own in `kinds:`
of configs/languages/*.yaml, where it needs them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data_prep.curation.characters import native

PROSE = "prose"  # has the rules of its language
VERSE, DIALOGUE, CODE, LIST = "verse", "dialogue", "code", "list"
BILINGUAL = "bilingual"  # of documents that join two languages, whatever their layout (bilingual.py)
KINDS_WITH_RULES = (VERSE, DIALOGUE, CODE, LIST, BILINGUAL)

_MIN_LINES = 4
_MIN_CODE = 0.2  # of the visible characters
_MIN_SPOKEN = 0.5  # of the lines of prose
_MAX_SPEAKERS = 0.5  # different names for each line of dialogue: the terms of a glossary all differ
_MIN_ITEMS = 0.8
_MIN_VERSES = 0.85
_MIN_ENDED = 0.4  # of the verses end with a mark, as few headings and entries of a menu do
_MIN_EVEN = 0.6  # of the verses are as long as the verse before
_MIN_FUNCTION_WORDS = 0.08  # of the words: lyrics without marks have them, menus have next to none
_NAME = re.compile(r"^\s*([^\s:：][^\n:：]{0,11})[:：]", re.MULTILINE)
_FUNCTION_WORDS = {
    "zh": re.compile("[的了是我你他她不也都就着还没有这那吗呢吧啊]"),
    "en": re.compile(r"\b(?:the|and|of|to|in|that|my|you|with|for|is|it|but|i)\b", re.IGNORECASE),
}


class Shape(NamedTuple):
    """Counts of `native.shape`; native/layout.hpp says what each counts."""

    visible: int
    code: int
    lines: int
    spoken: int
    named: int
    items: int
    verses: int
    ended: int
    even: int


def kind_of(text: str, language: str) -> str:
    """One of the kinds above."""
    shape = Shape(*native.shape(text))
    if shape.code >= _MIN_CODE * shape.visible:
        return CODE
    if shape.lines < _MIN_LINES:
        return PROSE
    if shape.spoken + shape.named >= _MIN_SPOKEN * shape.lines and _is_dialogue(text, shape):
        return DIALOGUE
    if shape.items + shape.named >= _MIN_ITEMS * shape.lines:
        return LIST
    return VERSE if shape.verses >= _MIN_VERSES * shape.lines and _is_verse(text, language, shape) else PROSE


def _is_dialogue(text: str, shape: Shape) -> bool:
    if shape.spoken >= shape.named:
        return True
    names = _NAME.findall(text)
    return len(set(names)) <= _MAX_SPEAKERS * len(names)


def _is_verse(text: str, language: str, shape: Shape) -> bool:
    if shape.ended >= _MIN_ENDED * shape.verses or shape.even >= _MIN_EVEN * shape.verses:
        return True
    words = sum(native.word_counts(text))
    function_words = _FUNCTION_WORDS.get(language)
    return function_words is not None and len(function_words.findall(text)) >= _MIN_FUNCTION_WORDS * words
