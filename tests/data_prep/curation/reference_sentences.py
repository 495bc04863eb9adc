"""Plain definition of where sentences start, which the native scan is compared with."""

from __future__ import annotations

import re

from data_prep.curation import characters as c
from tests.data_prep.curation.reference import alone, class_of, is_space, is_word, visible

_SURE, _MARKS = "。！？；｡؟۔।॥", ".!?…"
_RUN = re.compile(rf"[{_SURE}{_MARKS}\"')\]”’」』）】》»]+")
_LINE_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"


def sentence_starts(text: str) -> list[int]:
    """After line ends, after runs with one of the sure marks, and after other marks where something new begins."""
    kept = [at for at, char in enumerate(text) if visible(char)]
    seen = "".join(text[at] for at in kept)
    after = [0, *(at + 1 for at, char in enumerate(seen) if char in _LINE_ENDS)]
    for run in _RUN.finditer(seen):
        first = _first_mark(seen, *run.span())
        following = seen[_next(seen, run.end()) :][:1]
        blank = is_space(seen[run.end() : run.end() + 1] or " ")
        opens = not _is_small(following) if blank else alone(following)
        if first < run.end() and (any(mark in _SURE for mark in seen[first : run.end()]) or (following and opens)):
            after.append(run.end())
    starts = {_next(seen, at) for at in after}
    return [kept[at] for at in sorted(starts) if at < len(seen)]


def _first_mark(seen: str, start: int, stop: int) -> int:
    """The mark that ends the sentence, of a run of marks and closing signs; its stop where none does."""
    for at in range(start, stop):
        if seen[at] in _SURE or (seen[at] in _MARKS and not (seen[at] == "." and _is_short_form(seen, at))):
            return at
    return stop


def _is_short_form(seen: str, stop: int) -> bool:
    start = stop
    while start and is_word(seen[start - 1]) and not alone(seen[start - 1]):
        start -= 1
    return 0 < stop - start <= 3 and bool(class_of(seen[start]) & (c.UPPER | c.NUMBER))


def _next(seen: str, at: int) -> int:
    while at < len(seen) and (is_space(seen[at]) or seen[at] in _LINE_ENDS):
        at += 1
    return at


def _is_small(char: str) -> bool:
    kind = class_of(char) if char else 0
    cased = bool(char) and (ord(char) < 0x590 or 0x1E00 <= ord(char) < 0x2000)
    return cased and bool(kind & c.LETTER) and not kind & c.UPPER
