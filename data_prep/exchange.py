"""Rows that one set of tasks writes and another reads by ranges of a key: the shuffle between two phases.

A producer writes one Arrow file, its rows sorted by a uint64 key. A consumer of `partitions` reads, from all
producers through memory maps, the rows whose key lies in its equal share of the key space, so keys must be
spread evenly (hashes). What a consumer gets is sorted by key and depends neither on who wrote it nor in what order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEY = "key"
PARTITION_BYTES = 96 * 1024**2  # of rows that one consumer holds; with what it makes of them it takes six times that


def scatter(values: np.ndarray) -> np.ndarray:
    """uint64 hashes of integers, spread over the whole key space (the finaliser of MurmurHash3); invertible."""
    mixed = values.astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(33))


class Exchange:
    """One shuffle, as a folder of Arrow files, one per producer."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, number: int, key: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Write one producer's rows; `columns` are arrays of equal length (numpy or Arrow)."""
        arrays = {KEY: pa.array(key), **{name: to_arrow(values) for name, values in columns.items()}}
        if key.size and (key[1:] < key[:-1]).any():
            order = pa.array(np.argsort(key, kind="stable"))
            arrays = {name: values.take(order) for name, values in arrays.items()}
        write_table(self.folder / f"{number:05d}.arrow", pa.table(arrays))

    def partitions(self) -> int:
        """How many consumers keep each one's rows within `PARTITION_BYTES`."""
        return max(1, -(-sum(p.stat().st_size for p in self._files()) // PARTITION_BYTES))

    def read(self, partition: int, partitions: int) -> pa.Table:
        """The rows of one consumer, by key, then in the order of the producers' numbers."""
        table = pa.concat_tables(self._pieces(partition, partitions)).combine_chunks()
        return table.take(pa.array(np.argsort(column(table, KEY), kind="stable")))

    def ordered(self, partition: int, partitions: int) -> Iterator[tuple[pa.Table, int]]:
        """The rows of one consumer in the order of `read`, as places in the mapped files: nothing is copied."""
        pieces = self._pieces(partition, partitions)
        keys = np.concatenate([column(piece, KEY) for piece in pieces])
        piece_of = np.repeat(np.arange(len(pieces)), [piece.num_rows for piece in pieces])
        row_of = np.concatenate([np.arange(piece.num_rows) for piece in pieces])
        for place in np.argsort(keys, kind="stable").tolist():
            yield pieces[piece_of[place]], int(row_of[place])

    def lookup(self, key: int) -> pa.Table:
        """The rows with exactly this key, in the order of the producers' numbers."""
        pieces: list[pa.Table] = []
        for path in self._files():
            table = read_table(path)
            keys = column(table, KEY)
            first, last = (int(np.searchsorted(keys, np.uint64(key), side)) for side in ("left", "right"))
            pieces.append(table.slice(first, last - first))
        return pa.concat_tables(pieces).combine_chunks()

    def _pieces(self, partition: int, partitions: int) -> list[pa.Table]:
        pieces: list[pa.Table] = []
        for path in self._files():
            table = read_table(path)
            keys = column(table, KEY)
            first, last = (_bound(keys, edge, partitions) for edge in (partition, partition + 1))
            if last > first or not pieces:  # one at least, for the columns' types
                pieces.append(table.slice(first, last - first))
        return pieces

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file of one batch, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as raw:
        with pa.ipc.new_file(raw, table.schema) as writer:
            for batch in table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]:
                writer.write_batch(batch)
        raw.flush()
        os.fsync(raw.fileno())
    os.replace(partial, path)


def read_table(path: Path) -> pa.Table:
    """Map an Arrow file; nothing is read before it is used."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers, or of fixed-size rows as a matrix, as numpy."""
    values = table[name].combine_chunks() if table[name].num_chunks != 1 else table[name].chunk(0)
    if pa.types.is_fixed_size_binary(values.type):
        width = values.type.byte_width
        raw = np.frombuffer(values.buffers()[1], np.uint8, len(values) * width, values.offset * width)
        return raw.reshape(len(values), width)
    return values.to_numpy()


def list_value(table: pa.Table, name: str, row: int) -> np.ndarray:
    """One row of a column of lists of numbers."""
    lists = table[name].chunk(0)
    start, end = lists.offsets[row].as_py(), lists.offsets[row + 1].as_py()
    return lists.values.slice(start, end - start).to_numpy()


def to_arrow(values: Any) -> pa.Array:
    """Numbers, strings or Arrow arrays as they are; a uint8 matrix as fixed-size rows."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        assert values.dtype == np.uint8
        width = pa.binary(values.shape[1])
        return pa.Array.from_buffers(width, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values)


def grouped(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the runs of equal values."""
    if sorted_keys.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    edges = np.flatnonzero(sorted_keys[1:] != sorted_keys[:-1]) + 1
    return np.concatenate(([0], edges)), np.concatenate((edges, [len(sorted_keys)]))


def sort_table(table: pa.Table, *by: tuple[str, str]) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=list(by)))


def _bound(keys: np.ndarray, edge: int, partitions: int) -> int:
    if edge == partitions:
        return len(keys)
    return int(np.searchsorted(keys, np.uint64((edge << 64) // partitions), side="left"))
