"""What dedup keeps of each document: its hashes and what decides which of a cluster stays.

A document is numbered `part << 40 | record`. Signatures stay on disk with their parameters, so that a new crawl
can be deduplicated against an old one without reading that again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.characters import native
from data_prep.documents import Document
from data_prep.exchange import Exchange, column, read_table, scatter, to_arrow, write_table
from data_prep.minhash import MinHash, pack

RECORD_BITS = 40
OLD_PARTS = 1 << 23  # parts of older runs are numbered from here,
_OLD_RUN = 1 << 20  # each run's by this much further
CHUNK_DOCUMENTS = 50_000  # signed in memory at a time: 1.5 KiB each


@dataclass(frozen=True)
class Ranking:
    """Which document of a cluster stays: source by priority, then quality, then length, then the smallest id."""

    priority: tuple[str, ...]
    quality_field: str

    def of(self, document: Document) -> tuple[int, float]:
        source = document.get("source")
        place = self.priority.index(source) if source in self.priority else len(self.priority)
        quality = document.get(self.quality_field)
        return place, float(quality) if isinstance(quality, (int, float)) else 0.0


def sign_part(
    numbered: Iterable[tuple[int, Document]],
    number: int,
    *,
    minhash: tuple[int, int, int, int],
    ranking: Ranking,
    output: Path,
) -> dict[str, Any]:
    """Signatures of one part's documents, as signatures/NNNNN-CCC.arrow."""
    hashes = MinHash(*minhash)
    rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    chunk = documents = 0
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
        if len(rows["id"]) == CHUNK_DOCUMENTS:
            _write(rows, hashes, signature_path(output, number, chunk))
            chunk += 1
    _write(rows, hashes, signature_path(output, number, chunk))
    return {"documents": documents, "chunks": chunk + 1}


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

    Args:
        output: folder of this run.
        older: folders of older runs, whose parts follow from `OLD_PARTS` on.
    """

    def __init__(self, output: Path, older: tuple[Path, ...] = ()):
        self._paths: dict[int, list[Path]] = {}
        self._output, self._older = output, older
        for folder, base in ((output, 0), *((folder, OLD_PARTS + _OLD_RUN * i) for i, folder in enumerate(older))):
            for path in sorted((folder / "signatures").glob("*.arrow")):
                self._paths.setdefault(base + int(path.name.split("-")[0]), []).append(path)

    def numbers(self) -> list[int]:
        return sorted(self._paths)

    def part(self, number: int) -> list[pa.Table]:
        """The tables of one part, records ascending."""
        return [read_table(path) for path in self._paths[number]]

    def drops(self, number: int) -> pa.Table:
        """What the run of one part dropped of it: record, exact."""
        run, number = divmod(number - OLD_PARTS, _OLD_RUN) if number >= OLD_PARTS else (None, number)
        folder = self._output if run is None else self._older[run]
        return Exchange(folder / "drops").lookup(part_key(number))

    def gather(self, documents: np.ndarray, names: tuple[str, ...]) -> pa.Table:
        """Rows of `names` for these document numbers, in their order."""
        order = np.argsort(documents, kind="stable")
        asked = documents[order]
        pieces = [self.part(self.numbers()[0])[0].select(names).slice(0, 0)]
        for number in np.unique(asked >> np.uint64(RECORD_BITS)).tolist():
            first, last = np.searchsorted(
                asked, np.array([number << RECORD_BITS, (number + 1) << RECORD_BITS], np.uint64)
            )
            records = asked[first:last] & np.uint64((1 << RECORD_BITS) - 1)
            for table in self.part(number):
                known = column(table, "record")
                if known.size:
                    inside = records[(records >= known[0]) & (records <= known[-1])]
                    pieces.append(table.select(names).take(pa.array(np.searchsorted(known, inside))))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))
