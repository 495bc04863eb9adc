"""What dedup keeps of each document: its hashes and what decides which of a cluster stays.

A document is numbered `part << 40 | record`. Signatures stay on disk with their parameters, so that a new crawl
can be deduplicated against an old one without reading that again. What a phase needs of many parts' documents
travels to their parts (`part_key`), where each part's signatures are opened once, and on from there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.core.partial_files import remove_following
from data_prep.core.shuffle import Shuffle, column, grouped, read_table, scatter, to_arrow, write_table
from data_prep.curation.characters import native
from data_prep.deduplication.minhash import MinHash, pack
from data_prep.documents.reading import Document
from recipe.base.errors import UserError

RECORD_BITS = 40
OLD_PARTS = 1 << 23  # parts of older runs are numbered from here, run after run
DROPS_FILES = 16  # that a task opens to see what went of its part
CHUNK_DOCUMENTS = 50_000  # signed in memory at a time: 1.5 KiB each


@dataclass(frozen=True)
class Ranking:
    """Which document of a cluster stays: source by priority, then quality, then length, then the smallest id."""

    priority: tuple[str, ...]
    quality_field: str

    def of(self, document: Document) -> tuple[int, float]:
        source = document.get("source")
        place = self.priority.index(source) if source in self.priority else len(self.priority)
        return place, self.quality(document) or 0.0

    def quality(self, document: Document) -> float | None:
        """The document's quality, if it is a finite number."""
        value = document.get(self.quality_field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:  # an integer beyond a float
            return None


def sign_part(
    numbered: Iterable[tuple[int, Document]],
    number: int,
    *,
    minhash: tuple[int, int, int, int],
    ranking: Ranking,
    output: Path,
) -> dict[str, Any]:
    """Signatures of one part's documents, as signatures/NNNNN-CCC.arrow.

    Returns:
        counts: documents, chunks, documents `ranked` by a quality, and those whose quality is no finite number.
    """
    hashes = MinHash(*minhash)
    rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    chunk = documents = ranked = unranked = 0
    for record, document in numbered:
        text = document["text"]
        rows["record"].append(record)
        rows["id"].append(document["id"])
        rows["lang"].append(str(document.get("lang") or "unknown"))
        rows["source"].append(str(document.get("source") or "unknown"))
        place, quality = ranking.of(document)
        rows["priority"].append(place)
        rows["quality"].append(quality)
        rows["characters"].append(len(text))
        rows["bytes"].append(len(text.encode()))
        rows["exact"].append(native.exact_hash(text))
        rows["signature"].append(hashes.signature(text))
        documents += 1
        numeric = ranking.quality(document) is not None
        ranked += numeric
        unranked += not numeric and document.get(ranking.quality_field) is not None
        if len(rows["id"]) == CHUNK_DOCUMENTS:
            _write(rows, hashes, signature_path(output, number, chunk))
            chunk += 1
    _write(rows, hashes, signature_path(output, number, chunk))
    remove_following(signature_path(output, number, following) for following in count(chunk + 1))
    return {"documents": documents, "chunks": chunk + 1, "ranked": ranked, "unranked": unranked}


def signature_path(output: Path, number: int, chunk: int) -> Path:
    return output / "signatures" / f"{number:05d}-{chunk:03d}.arrow"


_COLUMNS = ("record", "id", "lang", "source", "priority", "quality", "characters", "bytes", "exact", "signature")


def _write(rows: dict[str, list[Any]], hashes: MinHash, path: Path) -> None:
    size = len(rows["id"])
    signatures = np.array(rows["signature"], np.uint32).reshape(size, hashes.bands * hashes.rows)
    exact = np.array(rows["exact"], np.uint64).reshape(size, 2)
    columns = {
        "record": np.array(rows["record"], np.uint64),
        "id": pa.array(rows["id"], pa.string()),
        "lang": pa.array(rows["lang"], pa.string()),
        "source": pa.array(rows["source"], pa.string()),
        "priority": np.array(rows["priority"], np.int32),
        "quality": np.array(rows["quality"], np.float64),
        "characters": np.array(rows["characters"], np.int64),
        "bytes": np.array(rows["bytes"], np.int64),
        "exact": exact.view(np.uint8).reshape(size, 16),
        "packed": pack(signatures),
        "bands": hashes.band_keys(signatures).view(np.uint8).reshape(size, 8 * hashes.bands),
    }
    write_table(path, pa.table({name: to_arrow(values) for name, values in columns.items()}))
    for values in rows.values():
        values.clear()


def part_key(number: int | np.ndarray) -> Any:
    """The key under which rows of one part travel."""
    key = scatter(np.atleast_1d(number))
    return int(key[0]) if np.isscalar(number) else key


class Catalog:
    """The signatures of this run's parts and of older runs, looked up by document number.

    It travels with every task, so it holds the folders alone and finds a part's files by their names.

    Args:
        output: folder of this run.
        older: folders of older runs, whose parts follow from `OLD_PARTS` on.

    Raises:
        UserError: the older runs have more parts than can be numbered.
    """

    def __init__(self, output: Path, older: tuple[Path, ...] = ()):
        self._folders = (output, *older)
        self._first = [0]  # part of each run
        following = OLD_PARTS
        for folder in older:
            self._first.append(following)
            following += len(_parts_of(folder))
        if following > 1 << (64 - RECORD_BITS):
            raise UserError(f"--against names runs of more than {OLD_PARTS:,} parts together; name fewer")

    def numbers(self) -> list[int]:
        """All parts. Lists the folders: for the driver, not for a task."""
        return [first + n for first, folder in zip(self._first, self._folders, strict=True) for n in _parts_of(folder)]

    def part(self, number: int) -> list[pa.Table]:
        """The tables of one part, records ascending."""
        folder, number = self._run_of(number)
        paths = (signature_path(folder, number, chunk) for chunk in count())
        return [read_table(path) for path in takewhile(Path.exists, paths)]

    def drops(self, number: int) -> pa.Table:
        """What the run of one part dropped of it: record, exact."""
        folder, number = self._run_of(number)
        return Shuffle(folder / "drops").lookup(part_key(number))

    def gather(self, documents: np.ndarray, names: tuple[str, ...]) -> pa.Table:
        """Rows of `names` for these document numbers, in their order; opens each of their parts."""
        order = np.argsort(documents, kind="stable")
        asked = documents[order]
        pieces = [self.part(0)[0].select(names).slice(0, 0)] if asked.size == 0 else []
        numbers = asked >> np.uint64(RECORD_BITS)
        records = asked & np.uint64((1 << RECORD_BITS) - 1)
        for first, last in zip(*grouped(numbers), strict=True):
            for table in self.part(int(numbers[first])):
                known = column(table, "record")
                if known.size:
                    start, end = first + np.searchsorted(records[first:last], [known[0], known[-1] + np.uint64(1)])
                    pieces.append(table.select(names).take(pa.array(np.searchsorted(known, records[start:end]))))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))

    def _run_of(self, number: int) -> tuple[Path, int]:
        """The folder of a part's run, and the part's number there."""
        run = bisect_right(self._first, number) - 1
        return self._folders[run], number - self._first[run]


def _parts_of(folder: Path) -> list[int]:
    return sorted({int(path.name.split("-")[0]) for path in (folder / "signatures").glob("*.arrow")})
