"""What a tokenizer loses of texts, or puts into them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from data_prep.documents.reading import Document
from data_prep.tokenization.encoder import CHECKED_CHARACTERS, ReferenceEncoder


class Losses:
    """What a tokenizer loses of texts or puts into them, by source: unknown tokens, ends of documents, other text.

    The first two are counted in all documents; for the last a few of each batch are decoded, of different sources: whole
    ones, or the beginning of a longer one where a source has no other.
    """

    def __init__(self, reference: ReferenceEncoder, eod: int):
        self._reference = reference
        self._counted = {"unknown_tokens": reference.unknown_id, "ends_in_text": eod}
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in (*self._counted, "decoded", "changed")}

    def counts(self) -> dict[str, dict[str, int]]:
        """Tokens or documents by source, of unknown_tokens, ends_in_text, decoded and changed."""
        return {name: dict(counter) for name, counter in self._counts.items()}

    def add(self, batch: list[Document], sources: list[str], ids: np.ndarray, ends: np.ndarray) -> None:
        for name, token in self._counted.items():
            if token is not None:
                owners = np.searchsorted(ends, np.flatnonzero(ids == token), side="right")
                self._counts[name].update(sources[owner] for owner in owners.tolist())
        longer: dict[str, str] = {}
        left, decoded = CHECKED_CHARACTERS, set()
        for number, (document, source) in enumerate(zip(batch, sources, strict=True)):
            size = len(document["text"])
            if source not in decoded and size <= left:
                decoded.add(source)
                left -= size
                start = int(ends[number - 1]) if number else 0
                self._compare(source, document["text"], ids[start : int(ends[number])])
            elif size > CHECKED_CHARACTERS:
                longer.setdefault(source, document["text"])
        for source, text in longer.items():
            if source not in decoded and left > 0:
                beginning = text[:left]
                left -= len(beginning)
                self._compare(source, beginning, self._reference.encode([beginning])[0])

    def _compare(self, source: str, text: str, ids: np.ndarray) -> None:
        self._counts["decoded"][source] += 1
        if not self._reference.keeps(text, ids):
            self._counts["changed"][source] += 1
