"""Cuts the repeated spans of spans.py out of documents, so that what is left reads as text.

Of a span its whole sentences are cut; the parts of sentences at its ends stay with the sentence that they begin or end.
Where whole sentences are less than half of the span (a long list without stops, code), it is cut at the borders of words.
What is left on both sides is joined with a line end. Documents of spared kinds stay whole: a page of code repeats it on
purpose, and with a piece cut out it does not run.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from data_prep.core.shuffle import Shuffle
from data_prep.curation.characters import native
from data_prep.deduplication.spans import PartRows, RepeatedSpans
from data_prep.documents.reading import Document, parse

_WITHIN_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]{2}")  # Chinese and kana: a word each


class SpanFilter:
    """Cuts the repeated spans out of one part's documents."""

    def __init__(self, config: RepeatedSpans, spans: Shuffle, number: int):
        self._config, self._spans = config, PartRows(spans, number, "start", "stop")

    def apply(self, record: int, raw: bytes | Document, changed: Counter[str]) -> bytes | Document | None:
        """The document without them, None if too little is left; `changed` counts spans, characters and documents."""
        if record not in self._spans:
            return raw
        document = parse(raw)
        if document.get("kind") in self._config.spared_kinds:
            return raw
        text, cuts = document["text"], cuts_of(document["text"], *self._spans.of(record))
        if not cuts:
            return raw
        edges = [0, *(edge for cut in cuts for edge in cut), len(text)]
        pieces = [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        left = native.normalize_layout("\n".join(piece for piece in pieces if piece.strip())).strip()
        changed.update(spans=len(cuts), characters=sum(stop - start for start, stop in cuts), documents=1)
        return {**document, "text": left} if len(left) >= self._config.min_left else None


def cuts_of(text: str, starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int]]:
    """What is cut of each span."""
    borders = np.append(native.sentence_starts(text).astype(np.int64), len(text))
    cuts = [_cut(text, borders, start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    return [(start, stop) for start, stop in cuts if stop > start]


def _cut(text: str, borders: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    behind = stop  # and the blanks that follow
    while behind < len(text) and text[behind].isspace():
        behind += 1
    inside = borders[np.searchsorted(borders, start) : np.searchsorted(borders, behind, side="right")].tolist()
    if inside and 2 * (inside[-1] - inside[0]) >= stop - start:
        return inside[0], inside[-1]
    while start < stop and start and _WITHIN_WORD.match(text, start - 1):
        start += 1
    while stop > start and _WITHIN_WORD.match(text, stop - 1):
        stop -= 1
    return start, stop
