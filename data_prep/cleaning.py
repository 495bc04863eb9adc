"""Text repaired before anything judges it: encoding, composition, layout, lines that are no content."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property

import ahocorasick_rs
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
    """UTF-8 that was read as Latin-1 repaired, NFC, `\\n` line ends, no control or zero-width characters, no trailing
    blanks, no runs of empty lines."""
    if native.mojibake_pairs(text):
        text = ftfy.fix_text(text, _FIX_ENCODING_ONLY)
    return native.normalize_layout(unicodedata.normalize("NFC", text))


class Phrases:
    """A list of phrases looked for in a text, all at once, case aside."""

    def __init__(self, phrases: Sequence[str], whole_words: bool = False):
        self._phrases, self._whole_words = tuple(phrase.lower() for phrase in phrases), whole_words

    def __getstate__(self) -> tuple[tuple[str, ...], bool]:
        return self._phrases, self._whole_words

    def __setstate__(self, state: tuple[tuple[str, ...], bool]) -> None:
        self._phrases, self._whole_words = state

    @cached_property
    def _automaton(self) -> ahocorasick_rs.AhoCorasick:
        return ahocorasick_rs.AhoCorasick(self._phrases)

    def places(self, text: str) -> list[int]:
        """Where each match starts in the text."""
        if not self._phrases:
            return []
        lowered = text.lower()
        found = [(start, end) for _, start, end in self._automaton.find_matches_as_indexes(lowered, overlapping=True)]
        if len(lowered) != len(text):  # a few characters have longer lower cases, which shift what follows
            found = [(min(start, len(text) - 1), end) for start, end in found]
        if self._whole_words:
            found = [(s, e) for s, e in found if not _joined(lowered, s - 1, s) and not _joined(lowered, e - 1, e)]
        return [start for start, _ in found]


def _joined(text: str, left: int, right: int) -> bool:
    """Whether two places are inside one word; Chinese characters never are."""
    return left >= 0 and right < len(text) and _is_letter(text[left]) and _is_letter(text[right])


def _is_letter(char: str) -> bool:
    return char.isalnum() and not "\u3400" <= char <= "\u9fff"


def without_lines(text: str, places: Sequence[int]) -> tuple[str, int]:
    """The text without the lines in which the places lie, and how many lines went."""
    starts, ends = set(), {}
    for place in places:
        start = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        starts.add(start)
        ends[start] = len(text) if end < 0 else end + 1
    kept, at = [], 0
    for start in sorted(starts):
        kept.append(text[at:start])
        at = ends[start]
    kept.append(text[at:])
    return "".join(kept), len(starts)
