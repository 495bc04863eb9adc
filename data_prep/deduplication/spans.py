"""Long spans of text that stand in several documents, or in one repeatedly, found exactly; `cuts.py` cuts them out.

Optional pass of dedup after whole documents went. What is found is what Lee et al. find with one suffix array over all
text (arXiv 2107.06499), in characters in place of their tokens: every character that is in `min_characters` characters in
a row that stand elsewhere before, and no other. Before means: in an earlier part, record or place, so the outcome
depends on the documents and their files alone.

Without a suffix array, in two steps. The first finds where to look. Short windows, of half of `min_characters`, are
hashed, and winnowing keeps of each `window` in a row the one of the least hash (Schleimer et al., SIGMOD 2003, doi
10.1145/872757.872770): the anchors. Equal text keeps equal anchors, and each `min_characters` characters hold one. The
second step hashes all windows of `min_characters` characters around the anchors that come several times, and of those
windows all but the first of each are repeated. So hashes decide, 122 bits of two polynomials modulo a prime: two
different windows of n characters are taken for equal with a probability of (n / 2**61)**2 for random bases, 1e-32 at the
default length (ours are fixed).

Cost: of all text some 2 / (window + 1) rows of 24 bytes a character, 0.5 bytes at the default length; then 28 bytes for
each character around an anchor that comes several times, and 20 for each that is repeated. Documents are read once more
for each step. Rows of one hash are of one consumer, as are those of one document.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_prep.core.shuffle import RunTasks, Shuffle, column, grouped, producer, scatter, sort_table
from data_prep.curation.characters import native
from data_prep.deduplication.signatures import DROPS_FILES, RECORD_BITS, part_key
from data_prep.documents.reading import Part, parse, records
from recipe.base.strict import Section

_CHUNK_ROWS = 2_000_000  # in memory at a time: 56 MB
_RECORD = np.uint64((1 << RECORD_BITS) - 1)


class RepeatedSpans(Section):
    min_characters: int = Field(200, ge=32, le=100_000)  # spans of so many are found; Lee et al. take 50 tokens
    min_left: int = Field(100, ge=1)  # a document that was cut and has fewer characters left goes
    spared_kinds: list[str] = ["code"]  # by the field `kind` of curation; their text does count as standing before

    @property
    def window(self) -> int:
        """A span of `min_characters` holds so many windows in a row, one of which is an anchor."""
        return (self.min_characters + 1) // 2


Fate = Callable[[int], tuple[Any, np.ndarray]]  # labels of a part's documents and which stay, as dedup.py says


def find_spans(
    run: RunTasks, shuffle: Callable[[str], Shuffle], parts: list[Part], config: RepeatedSpans, fate: Fate
) -> Shuffle:
    """All phases. The spans of each document, with their `start` and `stop`, by the `part_key` of its part."""
    anchors, shared, windows = shuffle("anchors"), shuffle("shared"), shuffle("windows")
    repeated, spans = shuffle("repeated_windows"), shuffle("spans")
    run("anchors", partial(find_anchors, config=config, target=anchors, fate=fate), parts)
    anchors.merge(run)
    ranges = anchors.partitions()
    run("shared", partial(find_shared, source=anchors, partitions=ranges, target=shared), list(range(ranges)))
    shared.merge(run, DROPS_FILES)
    run("windows", partial(hash_windows, config=config, source=shared, target=windows), parts)
    windows.merge(run)
    ranges = windows.partitions()
    find = partial(find_repeated_windows, source=windows, partitions=ranges, target=repeated)
    run("repeated_windows", find, list(range(ranges)))
    repeated.merge(run)
    ranges = repeated.partitions()
    join = partial(join_windows, config=config, source=repeated, partitions=ranges, target=spans)
    run("spans", join, list(range(ranges)))
    spans.merge(run, DROPS_FILES)
    return spans


class _Rows:
    """Rows of one task on their way to a shuffle: key, check, document and place of windows."""

    def __init__(self, target: Shuffle, task: int, check: type):
        self._target, self._task = target, task
        self._none: list[np.ndarray] = [np.zeros(0, kind) for kind in (np.uint64, check, np.uint32)]
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
        self._size = self._chunks = 0

    def add(self, key: np.ndarray, check: np.ndarray, place: np.ndarray, document: int) -> None:
        self._waiting.append((key, check, place, document))
        self._size += key.size + 1
        if self._size > _CHUNK_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._target.remove_chunks(self._task, self._chunks)

    def _flush(self) -> None:
        key, check, place = (
            np.concatenate([none, *(row[i] for row in self._waiting)]) for i, none in enumerate(self._none)
        )
        document = np.array([row[3] for row in self._waiting], np.uint64).repeat([row[0].size for row in self._waiting])
        columns = {"check": check, "document": document, "place": place}
        self._target.write(producer(self._task, self._chunks), key, columns)
        self._waiting.clear()
        self._size, self._chunks = 0, self._chunks + 1


def find_anchors(part: Part, number: int, *, config: RepeatedSpans, target: Shuffle, fate: Fate) -> dict[str, Any]:
    """The anchors of one part's surviving documents, by hash."""
    labels, gone = fate(number)
    kept = iter(column(labels, "record")[gone < 0].tolist())
    rows, following = _Rows(target, number, np.uint32), next(kept, None)
    for record, raw in enumerate(records(part)):
        if record == following:
            following = next(kept, None)
            rows.add(*native.anchors(parse(raw)["text"], config.window), number << RECORD_BITS | record)
    rows.close()
    return {}


def find_shared(partition: int, number: int, *, source: Shuffle, partitions: int, target: Shuffle) -> dict[str, Any]:
    """Of one range of hashes, the anchors that come several times, sent to the parts of their documents."""
    table = _by_hash(source, partition, partitions)
    same = _like_before(table)
    document, place = (column(table, name)[same | np.append(same[1:], False)] for name in ("document", "place"))
    target.write(number, part_key(document >> np.uint64(RECORD_BITS)), {"document": document, "place": place})
    return {"anchors": int(place.size)}


def hash_windows(part: Part, number: int, *, config: RepeatedSpans, source: Shuffle, target: Shuffle) -> dict[str, Any]:
    """All windows of `min_characters` characters of one part that hold an anchor that comes several times, by hash."""
    shared, rows, length = PartRows(source, number, "place"), _Rows(target, number, np.uint64), config.min_characters
    for record, raw in enumerate(records(part)):
        if record not in shared:
            continue
        (places,), text = shared.of(record), parse(raw)["text"]
        for start, stop in joined(places.astype(np.int64) - (length - config.window), places.astype(np.int64) + 1):
            stop = min(stop, len(text) - length + 1)
            for at in range(max(start, 0), stop, _CHUNK_ROWS):
                end = min(at + _CHUNK_ROWS, stop)
                hashes = native.windows(text[at : end + length - 1], length)
                rows.add(*hashes, np.arange(at, end, dtype=np.uint32), number << RECORD_BITS | record)
    rows.close()
    return {}


def find_repeated_windows(
    partition: int, number: int, *, source: Shuffle, partitions: int, target: Shuffle
) -> dict[str, Any]:
    """Of one range of hashes, all windows but the first of each, by document."""
    table = _by_hash(source, partition, partitions)
    same = _like_before(table)
    document, place = column(table, "document")[same], column(table, "place")[same]
    target.write(number, scatter(document), {"document": document, "place": place})
    return {"windows": int(place.size)}


def join_windows(
    partition: int, number: int, *, config: RepeatedSpans, source: Shuffle, partitions: int, target: Shuffle
) -> dict[str, Any]:
    """The spans that the repeated windows of some documents cover, sent to the parts of the documents."""
    table = sort_table(source.read(partition, partitions), ("document", "ascending"), ("place", "ascending"))
    document, place = column(table, "document"), column(table, "place")
    first = np.ones(place.size, bool)
    first[1:] = (document[1:] != document[:-1]) | (place[1:] - place[:-1] > config.min_characters)
    last = np.append(first[1:], True)[: place.size]
    columns = {
        "document": document[first],
        "start": place[first],
        "stop": place[last] + np.uint32(config.min_characters),
    }
    target.write(number, part_key(columns["document"] >> np.uint64(RECORD_BITS)), columns)
    return {"spans": int(first.sum())}


def _by_hash(source: Shuffle, partition: int, partitions: int) -> pa.Table:
    order = ("key", "check", "document", "place")
    return sort_table(source.read(partition, partitions), *((name, "ascending") for name in order))


def _like_before(table: pa.Table) -> np.ndarray:
    """Whether each row has the hashes of the row before."""
    key, check = column(table, "key"), column(table, "check")
    same = np.zeros(key.size, bool)
    same[1:] = (key[1:] == key[:-1]) & (check[1:] == check[:-1])
    return same


class PartRows:
    """The rows of one part in a shuffle by `part_key`, by record and then by the first of the columns."""

    def __init__(self, source: Shuffle, part: int, *names: str):
        table = source.lookup(part_key(part))
        record = column(table, "document") & _RECORD
        order = np.lexsort((column(table, names[0]), record))
        self._columns = [column(table, name)[order] for name in names]
        starts, ends = grouped(record[order])
        self._ranges = dict(
            zip(record[order][starts].tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True)
        )

    def __contains__(self, record: int) -> bool:
        return record in self._ranges

    def of(self, record: int) -> list[np.ndarray]:
        start, end = self._ranges[record]
        return [values[start:end] for values in self._columns]


def joined(starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int]]:
    """What ascending spans of one length cover, as (start, stop) apart from each other."""
    new = np.flatnonzero(starts[1:] > stops[:-1]) + 1
    firsts, lasts = np.concatenate(([0], new)), np.append(new - 1, starts.size - 1)
    return list(zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True))
