"""Text repaired before anything judges it: encoding, composition, layout, notices that are no content."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

import ftfy

from data_prep.characters import native

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
    CLD2 takes every character of the result.
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


# A notice is a short line, or a sentence that says little beside its phrases. In English words; so many Chinese
# characters say what one does. From 120 passages of public pages and files that have a phrase of ours: notices of their
# own line have up to 20 words, or up to 40 with two phrases; within paragraphs, sentences with up to 7 words beside the
# phrase are notices, and those with 8 speak of the matter ("a web server uses cookies to remember who you are").
_NOTICE_LINE_WORDS = 20
_WORDS_BESIDE_PHRASES = 7.5
_LABELLED_WORDS = 40  # of a sentence that starts with a phrase that ends in a colon
_CHARACTERS_PER_WORD = 1.6

_CLOSERS = "\"'`”’）)」』》】"
_SENTENCE_END = re.compile(
    r"(?:(?<=[。！？!?…])[（(【\[][^（）()【】\[\]]*[）)】\]]"  # a bracket of its own behind a sentence
    rf"|(?:[。！？!?…]+|\.(?=[\s{_CLOSERS}\u3400-\u9fff]|$))[{_CLOSERS}]*)\s*"
)
_OPENING_QUOTES, _CLOSING_QUOTES = frozenset("\"'`“‘「『《"), frozenset("\"'`”’」』》")


def without_notices(text: str, matches: Sequence[Span]) -> tuple[str, int, int]:
    """The text without the notices that the matches of phrases are in, how many lines went, and how many sentences.

    A short line goes whole. Of a longer one those sentences go that say little else; what only mentions a phrase stays.
    A phrase in quotation marks is a mention. Linear in the length of the text.
    """
    pieces, done, lines, sentences = [], 0, 0, 0
    for start, stop, spans in _by_line(text, [span for span in sorted(matches) if not _is_quoted(text, span)]):
        pieces.append(text[done:start])
        rest, notices = _line_without(text, start, stop, spans)
        if notices and not rest.strip():
            lines += 1
            done = stop + 1  # with the line end
        else:
            pieces.append(rest)
            sentences += notices
            done = stop
    pieces.append(text[done:])
    return "".join(pieces), lines, sentences


def _line_without(text: str, start: int, stop: int, spans: Sequence[Span]) -> tuple[str, int]:
    """A line of the text without its notices, and how many they are."""
    several = spans[-1][0] >= spans[0][1]
    if _words(text[start:stop]) <= _NOTICE_LINE_WORDS * (2 if several else 1):
        return "", 1
    kept, notices = [], 0
    for sentence_start, sentence_stop, inside in _by_sentence(text, start, stop, spans):
        if inside and _is_notice(text, sentence_start, sentence_stop, inside):
            notices += 1
        else:
            kept.append(text[sentence_start:sentence_stop])
    return "".join(kept), notices


def is_prominent(text: str, matches: Sequence[Span]) -> bool:
    """Whether phrases are what the text is about: three of them, or one as a notice; else it mentions them."""
    return len(matches) >= 3 or without_notices(text, matches)[1:] != (0, 0)


def _by_line(text: str, spans: Sequence[Span]) -> Iterator[tuple[int, int, list[Span]]]:
    """Start, stop and spans of every line that has some; the spans are sorted."""
    at = stop = 0
    while at < len(spans):
        start = text.rfind("\n", stop, spans[at][0]) + 1 or stop
        stop = text.find("\n", spans[at][1])
        stop = len(text) if stop < 0 else stop
        first = at
        while at < len(spans) and spans[at][0] < stop:
            at += 1
        yield start, stop, list(spans[first:at])


def _by_sentence(text: str, start: int, stop: int, spans: Sequence[Span]) -> Iterator[tuple[int, int, list[Span]]]:
    """Start, stop and spans of every sentence of a line, the blanks behind it included."""
    at = 0
    ends = [match.end() for match in _SENTENCE_END.finditer(text, start, stop)]
    for end in ends if ends and ends[-1] == stop else [*ends, stop]:
        first = at
        while at < len(spans) and spans[at][0] < end:
            at += 1
        yield start, end, list(spans[first:at])
        start = end


def _is_notice(text: str, start: int, stop: int, spans: Sequence[Span]) -> bool:
    """Whether a sentence says little beside the phrases in it, or is the text behind a label."""
    beside, done = [], start
    for span in spans:
        beside.append(text[done : span[0]])
        done = max(done, span[1])
    first = text[slice(*spans[0])]
    if first.endswith((":", "：")) and not _words(beside[0]) and _words(text[start:stop]) <= _LABELLED_WORDS:
        return True
    return _words("\n".join([*beside, text[done:stop]])) <= _WORDS_BESIDE_PHRASES


def _is_quoted(text: str, span: Span) -> bool:
    start, stop = span
    return text[max(0, start - 1) : start] in _OPENING_QUOTES or text[stop : stop + 1] in _CLOSING_QUOTES


def _words(text: str) -> float:
    words, characters = native.word_counts(text)
    return words + characters / _CHARACTERS_PER_WORD
