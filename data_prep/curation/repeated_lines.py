"""Lines that many documents have: menus, licences, notices. Optional pass of dedup after whole documents went.

Counted over the surviving documents, once per document; those that reach the limit are removed everywhere.
After the paragraph-level pass of CCNet (arXiv 1911.00359), which removes all that comes twice; a limit of
documents spares what is quoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_prep.core.partial_files import partial_path
from data_prep.core.shuffle import Shuffle, column, grouped, producer
from data_prep.curation.characters import native
from data_prep.documents.reading import Document, Part, parse, records
from recipe.base.files import replacing
from recipe.base.strict import Section

_CHUNK_LINES = 2_000_000  # hashes in memory at a time: 16 MB
_CHUNK_DOCUMENTS = 100_000  # arrays of them: 10 MB


class RepeatedLines(Section):
    min_documents: int = Field(gt=1)  # documents from which a line is removed
    min_characters: int = Field(20, gt=0)  # shorter lines stay: list items, headings


def count_lines(
    part: Part, number: int, *, config: RepeatedLines, target: Shuffle, fate: Callable[[int], tuple[Any, np.ndarray]]
) -> dict[str, Any]:
    """How many of one part's surviving documents have each line, by hash."""
    labels, gone = fate(number)
    kept = iter(column(labels, "record")[gone < 0].tolist())
    waiting: list[np.ndarray] = []
    chunk = lines = 0

    def flush() -> None:
        nonlocal chunk, lines
        hashes, times = np.unique(np.concatenate([np.zeros(0, np.uint64), *waiting]), return_counts=True)
        target.write(producer(number, chunk), hashes, {"documents": times.astype(np.int64)})
        waiting.clear()
        chunk, lines = chunk + 1, 0

    following = next(kept, None)
    for record, raw in enumerate(records(part)):
        if record == following:
            following = next(kept, None)
            hashes, lengths = native.line_hashes(parse(raw)["text"])
            waiting.append(np.unique(hashes[lengths >= config.min_characters]))
            lines += waiting[-1].size
            if lines > _CHUNK_LINES or len(waiting) >= _CHUNK_DOCUMENTS:
                flush()
    flush()
    target.remove_chunks(number, chunk)
    return {}


def find_repeated(
    partition: int, number: int, *, config: RepeatedLines, source: Shuffle, partitions: int, target: Path
) -> dict[str, Any]:
    """The hashes of one range that enough documents have, sorted, as NNNNN.npy under `target`."""
    table = source.read(partition, partitions)
    key, documents = column(table, "key"), column(table, "documents")
    starts, _ = grouped(key)
    total = np.add.reduceat(documents, starts) if key.size else documents
    repeated = (key[starts] if key.size else key)[total >= config.min_documents]
    _save(_range_path(target, number), [repeated])
    return {"lines": int(repeated.size)}


def join_repeated(ranges: int, number: int, *, source: Path, target: Path) -> dict[str, Any]:
    """The hashes of all ranges, which follow each other, as one sorted file: a part then opens one to look them up."""
    _save(target, [np.load(_range_path(source, i), mmap_mode="r") for i in range(ranges)])
    return {}


def _range_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _save(path: Path, pieces: list[np.ndarray]) -> None:
    """Write arrays of hashes as one, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "<u8", "fortran_order": False, "shape": (sum(map(len, pieces)),)}
    with replacing(path, partial_path(path)) as temporary, open(temporary, "wb") as raw:
        np.lib.format.write_array_header_1_0(raw, header)
        for piece in pieces:
            raw.write(np.ascontiguousarray(piece, "<u8").data)


class LineFilter:
    """Removes the repeated lines of a document; the hashes stay on disk, sorted in one file, mapped."""

    def __init__(self, path: Path):
        self._path = path
        self._hashes: np.ndarray | None = None

    def apply(self, raw: bytes | Document, changed: Counter[str]) -> Document | None:
        """The document without them, None if nothing is left; `changed` counts lines and documents."""
        document = parse(raw)
        hashes, _ = native.line_hashes(document["text"])
        repeated = self._are_repeated(hashes)
        if repeated.any():
            lines = document["text"].split("\n")
            lines = [line for place, line in enumerate(lines) if place >= len(repeated) or not repeated[place]]
            document = {**document, "text": native.normalize_layout("\n".join(lines))}
            changed["lines"] += int(repeated.sum())
            changed["documents"] += 1
        return document if document["text"] else None

    def _are_repeated(self, hashes: np.ndarray) -> np.ndarray:
        if self._hashes is None:
            self._hashes = np.load(self._path, mmap_mode="r")
        if self._hashes.size == 0:
            return np.zeros(hashes.size, bool)
        position = np.minimum(np.searchsorted(self._hashes, hashes), self._hashes.size - 1)
        return self._hashes[position] == hashes
