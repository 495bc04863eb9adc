"""Text repaired before anything judges it: encoding, composition, layout; and phrases looked for in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import ftfy

from data_prep.curation.characters import native

_FIX_ENCODING_ONLY = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    remove_terminal_escapes=False,
    normalization=None,
)


def normalize(text: str) -> str:
    """UTF-8 or Windows-1252 that was read as Latin-1 repaired, NFC, one kind of line end, no trailing blanks, no runs of
    empty lines.

    Characters that render as nothing go, but for joiners, variation selectors and tags, which change how their
    neighbours are read. Separators among the control characters become line ends or blanks: no two words are joined.
    """
    try:
        is_garbled = native.mojibake_pairs(text) > 0
    except UnicodeEncodeError:  # lone surrogates: none of our readers gives any, a caller may
        return normalize(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    if is_garbled:
        text = ftfy.fix_text(_with_line_ends(text), _FIX_ENCODING_ONLY)
    return compose(native.normalize_layout(text))


# Bytes of UTF-8 that were read as Latin-1. Behind a word, some of those with the next line character (U+0085) are letters,
# a mark and a line end: CAFÉ, «café».
_UTF8 = r"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
_NEXT_LINE = re.compile(
    r"(?P<utf8>(?<![A-Z][A-Z])[\xc3-\xdf]\x85"
    r"|[\xe0-\xef](?:[\x80-\x84\x86-\x9f]\x85|\x85[\x80-\x84\x86-\x9f])"
    r"|(?<![A-Za-z][A-Za-z])[\xe0-\xef](?:[\xa0-\xbf]\x85|\x85[\xa0-\xbf])"
    r"|[\xf0-\xf4][\x80-\xbf]{3})|\xc2?\x85"
)
# Controls that are characters in Windows-1252, alone or as UTF-8; but U+0085.
_WINDOWS_1252 = re.compile(rf"(?P<control>\xc2?[\x80\x82-\x84\x86-\x8c\x8e\x91-\x9c\x9e\x9f])|{_UTF8}")


def _with_line_ends(text: str) -> str:
    """The text with its next line characters (U+0085) as line ends, which a repair would take for ellipses.

    They are ellipses of Windows-1252 read as Latin-1 if other characters of it stand in the text as controls.
    """
    if "\x85" not in text or any(match["control"] for match in _WINDOWS_1252.finditer(text)):
        return text
    return _NEXT_LINE.sub(lambda match: match["utf8"] or "\n", text)


# Of combining marks in a row, so many stay: Unicode's Stream-Safe Text Format (UAX #15, 13). No language has more, and
# Python takes quadratic time to bring a row in order. Three Tibetan vowels are made of marks and are none by their class.
_MAX_MARKS = 30
_MARKS = native.Rows(
    [*(code for code in range(0x300, 0x20000) if unicodedata.combining(chr(code))), 0xF73, 0xF75, 0xF81], _MAX_MARKS
)


def compose(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """The text in a composed form of Unicode, in linear time: of marks in a row the first 30. No lone surrogates."""
    short = _MARKS.cut(text)
    composed = unicodedata.normalize(form, short)
    return composed if composed is short else _MARKS.cut(composed)  # a character can be composed of several marks


Span = tuple[int, int]  # start and stop, in characters


class Phrases:
    """A list of phrases looked for in a text, all at once, case and invisible characters aside."""

    def __init__(self, phrases: Sequence[str], whole_words: bool = False):
        self._scan = native.Phrases([unicodedata.normalize("NFC", phrase) for phrase in phrases], whole_words)
        self._any = any(phrases)

    def find(self, text: str) -> list[Span]:
        """Every match; matches overlap where phrases do."""
        return self._scan.find(text) if self._any else []
