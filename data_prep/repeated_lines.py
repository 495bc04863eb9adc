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
import orjson
from pydantic import BaseModel, ConfigDict, Field

from data_prep.characters import native
from data_prep.documents import Document, Part, records
from data_prep.exchange import Exchange, column, grouped

_CHUNK_LINES = 2_000_000  # hashes in memory at a time: 16 MB


class RepeatedLines(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    min_documents: int = Field(gt=1)  # documents from which a line is removed
    min_characters: int = Field(20, gt=0)  # shorter lines stay: list items, headings


def count_lines(
    part: Part, number: int, *, config: RepeatedLines, target: Exchange, fate: Callable[[int], tuple[Any, np.ndarray]]
) -> dict[str, Any]:
    """How many of one part's surviving documents have each line, by hash."""
    labels, gone = fate(number)
    kept = set(column(labels, "record")[gone < 0].tolist())
    waiting: list[np.ndarray] = []
    chunk = 0

    def flush() -> None:
        nonlocal chunk
        hashes, times = np.unique(np.concatenate([np.zeros(0, np.uint64), *waiting]), return_counts=True)
        target.write(number * 1000 + chunk, hashes, {"documents": times.astype(np.int64)})
        waiting.clear()
        chunk += 1

    for place, raw in enumerate(records(part)):
        if place in kept:
            hashes, lengths = native.line_hashes(_parsed(raw)["text"])
            waiting.append(np.unique(hashes[lengths >= config.min_characters]))
            if sum(map(len, waiting[-1000:])) > _CHUNK_LINES or len(waiting) >= 100_000:
                flush()
    flush()
    return {}


def find_repeated(
    partition: int, number: int, *, config: RepeatedLines, source: Exchange, partitions: int, target: Path
) -> dict[str, Any]:
    """The hashes of one range that enough documents have, sorted, as NNNNN.npy."""
    table = source.read(partition, partitions)
    key, documents = column(table, "key"), column(table, "documents")
    starts, _ = grouped(key)
    total = np.add.reduceat(documents, starts) if key.size else documents
    repeated = (key[starts] if key.size else key)[total >= config.min_documents]
    target.mkdir(parents=True, exist_ok=True)
    partial_path = target / f"{number:05d}.partial.npy"
    np.save(partial_path, repeated)
    partial_path.replace(target / f"{number:05d}.npy")
    return {"lines": int(repeated.size)}


class LineFilter:
    """Removes the repeated lines of a document; the hashes stay on disk, mapped."""

    def __init__(self, folder: Path, partitions: int):
        self._folder, self._partitions = folder, partitions
        self._hashes: list[np.ndarray] | None = None

    def apply(self, raw: bytes | Document, changed: Counter[str]) -> Document | None:
        """The document without them, None if nothing is left; `changed` counts lines and documents."""
        document = _parsed(raw)
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
            paths = [self._folder / f"{i:05d}.npy" for i in range(self._partitions)]
            self._hashes = [np.load(path, mmap_mode="r") for path in paths]
        found = np.zeros(hashes.size, bool)
        for known in self._hashes:
            if known.size:
                place = np.minimum(np.searchsorted(known, hashes), known.size - 1)
                found |= known[place] == hashes
        return found


def _parsed(raw: bytes | Document) -> Document:
    return orjson.loads(raw) if isinstance(raw, bytes) else raw
