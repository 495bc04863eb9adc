"""Long spans of text that stand in several documents, or in one repeatedly: cut out of all places but the first.

Optional pass of dedup after whole documents went, for exact substrings as Lee et al. remove them (arXiv 2107.06499), without
one suffix array over all text. Windows of `window` characters are hashed, and winnowing keeps of each `window` windows
in a row the one of the least hash (Schleimer et al., SIGMOD 2003, doi 10.1145/872757.872770). Equal text keeps equal
windows, about 2 of `window + 1`: the anchors, which are grouped by hash. Each anchor but the first of its group marks
its window, and what is marked is cut.

Guarantee: of a span of at least `min_characters` characters that stands elsewhere before, all is cut but fewer than
`window` characters at each end. Each character that is cut is in `window` characters that stand elsewhere before (by
96 bits of hashes). Before means: in an earlier part, record or place, so the outcome depends on the documents and
their files alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import Field

from data_prep.core.shuffle import Shuffle, column, grouped, producer, sort_table
from data_prep.curation.characters import native
from data_prep.deduplication.signatures import RECORD_BITS, part_key
from data_prep.documents.reading import Document, Part, parse, records
from recipe.base.strict import Section

_CHUNK_ANCHORS = 2_000_000  # in memory at a time: 48 MB


class RepeatedSpans(Section):
    min_characters: int = Field(200, ge=32)  # spans of so many are found; Lee et al. take 50 tokens
    min_left: int = Field(100, ge=1)  # a document that was cut and has fewer characters left goes

    @property
    def window(self) -> int:
        """A span of `min_characters` holds so many windows in a row, one of which is an anchor."""
        return (self.min_characters + 1) // 2


def find_anchors(
    part: Part, number: int, *, config: RepeatedSpans, target: Shuffle, fate: Callable[[int], tuple[Any, np.ndarray]]
) -> dict[str, Any]:
    """The anchors of one part's surviving documents, by hash."""
    labels, gone = fate(number)
    kept = iter(column(labels, "record")[gone < 0].tolist())
    rows: list[tuple[np.ndarray, ...]] = []
    chunk = size = 0

    def flush() -> None:
        nonlocal chunk, size
        none = tuple(np.zeros(0, kind) for kind in (np.uint64, np.uint32, np.uint32, np.uint64))
        key, check, place, document = map(np.concatenate, zip(none, *rows, strict=True))
        target.write(producer(number, chunk), key, {"check": check, "document": document, "place": place})
        rows.clear()
        chunk, size = chunk + 1, 0

    following = next(kept, None)
    for record, raw in enumerate(records(part)):
        if record == following:
            following = next(kept, None)
            found = native.anchors(parse(raw)["text"], config.window)
            rows.append((*found, np.full(found[0].size, number << RECORD_BITS | record, np.uint64)))
            size += found[0].size + 1
            if size > _CHUNK_ANCHORS:
                flush()
    flush()
    target.remove_chunks(number, chunk)
    return {}


def mark_repeated(partition: int, number: int, *, source: Shuffle, partitions: int, target: Shuffle) -> dict[str, Any]:
    """Of one range of hashes, all anchors but the first of each group, sent to the parts of their documents."""
    table = sort_table(source.read(partition, partitions), *((name, "ascending") for name in _ORDER))
    key, check, document, place = (column(table, name) for name in _ORDER)
    same = (key[1:] == key[:-1]) & (check[1:] == check[:-1])
    document, place = document[1:][same], place[1:][same]
    target.write(number, part_key(document >> np.uint64(RECORD_BITS)), {"document": document, "place": place})
    return {"anchors": int(place.size)}


_ORDER = ("key", "check", "document", "place")


class SpanFilter:
    """Cuts the repeated spans out of one part's documents."""

    def __init__(self, config: RepeatedSpans, marked: Shuffle, number: int):
        table = marked.lookup(part_key(number))
        record, place = column(table, "document") & np.uint64((1 << RECORD_BITS) - 1), column(table, "place")
        order = np.lexsort((place, record))
        record, self._places = record[order], place[order].astype(np.int64)
        starts, ends = grouped(record)
        self._rows = dict(zip(record[starts].tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True))
        self._config = config

    def apply(self, record: int, raw: bytes | Document, changed: Counter[str]) -> bytes | Document | None:
        """The document without them, None if too little is left; `changed` counts spans, characters and documents."""
        if record not in self._rows:
            return raw
        start, end = self._rows[record]
        document = parse(raw)
        text, spans = document["text"], covered(self._places[start:end], self._config.window)
        pieces, done = [], 0
        for first, last in spans:
            pieces.append(text[done:first])
            done = last
        left = native.normalize_layout("".join([*pieces, text[done:]])).strip()
        changed.update(spans=len(spans), characters=sum(last - first for first, last in spans), documents=1)
        return {**document, "text": left} if len(left) >= self._config.min_left else None


def covered(places: np.ndarray, window: int) -> list[tuple[int, int]]:
    """What windows at ascending places cover, as (start, stop) apart from each other."""
    new = np.flatnonzero(np.diff(places) > window) + 1
    firsts, lasts = places[np.concatenate(([0], new))], places[np.append(new - 1, places.size - 1)]
    return list(zip(firsts.tolist(), (lasts + window).tolist(), strict=True))
