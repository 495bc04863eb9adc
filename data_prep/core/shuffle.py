"""Rows that one set of tasks writes and another reads by ranges of a key: the shuffle between two phases.

A producer writes one Arrow file, its rows sorted by a uint64 key. A consumer of `partitions` reads, from all
producers through memory maps, the rows whose key lies in its equal share of the key space, so keys must be
spread evenly (hashes). What a consumer gets is sorted by key and depends neither on who wrote it nor in what order.

Consumers that open every producer's file would make the number of small reads grow with the square of the data. So
where there are more than `FAN_IN` producers, neighbours are merged into one file first, level by level, as push-based
shuffles do (Magnet, VLDB 2020; Exoshuffle, arXiv 2203.05072): a consumer opens `FAN_IN` files at most.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.core.partial_files import partial_path, remove_following
from recipe.base.files import write_json
from recipe.base.strict import load_json

KEY = "key"
PARTITION_BYTES = 96 * 1024**2  # of rows that one consumer holds; with what it makes of them it takes six times that
FAN_IN = 256  # files that a consumer or a merge opens; a level of merges for 256 times as many producers
_KEYS = 1 << 64
_STARTS = b"first_keys"  # in the metadata of a merged file: the lowest key that each of its batches may hold
_CHUNKS = 1 << 20  # files of one task

RunTasks = Callable[..., list[dict[str, Any]]]  # `Stage.run_tasks`


def scatter(values: np.ndarray) -> np.ndarray:
    """uint64 hashes of integers, spread over the whole key space (the finaliser of MurmurHash3); invertible."""
    mixed = values.astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(33))


def producer(task: int, chunk: int) -> int:
    """The producer's number for one of several files that a task writes."""
    assert chunk < _CHUNKS
    return task * _CHUNKS + chunk


class Shuffle:
    """One shuffle, as a folder of Arrow files: one per producer, or the newest level of merged ones in merged-N/."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, number: int, key: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Write one producer's rows; `columns` are arrays of equal length (numpy or Arrow)."""
        arrays = {KEY: pa.array(key), **{name: to_arrow(values) for name, values in columns.items()}}
        if key.size and (key[1:] < key[:-1]).any():
            order = pa.array(np.argsort(key, kind="stable"))
            arrays = {name: values.take(order) for name, values in arrays.items()}
        write_table(self._path(number), pa.table(arrays))

    def remove_chunks(self, task: int, first: int) -> None:
        """Remove what an attempt before has written as this task's chunks from `first` on; its end calls this."""
        remove_following(self._path(producer(task, chunk)) for chunk in range(first, _CHUNKS))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.arrow"

    def merge(self, run_tasks: RunTasks, most: int | None = None) -> None:
        """Merge files by tasks until there are at most `most` (`FAN_IN`); called when all producers are done.

        A merge reads its files range by range, and deletes them when the merged one has its name. The producers are
        written down before the first merge, so that a run that goes on after a kill makes the same groups.
        """
        most = most or FAN_IN
        plan = self.folder / "merge.json"
        if not plan.exists():
            names = [path.name for path in self._files()]
            if len(names) <= most:
                return
            write_json(plan, {"producers": names})
        names, level = load_json(plan)["producers"], 0
        while len(names) > most:
            level += 1
            size = min(FAN_IN, -(-len(names) // most))
            groups = [names[at : at + size] for at in range(0, len(names), size)]
            names = [f"merged-{level}/{number:05d}.arrow" for number in range(len(groups))]
            task = partial(_merge, folder=self.folder)
            run_tasks(f"merge-{self.folder.name}-{level}", task, list(zip(groups, names, strict=True)), None)

    def partitions(self) -> int:
        """How many consumers keep each one's rows within `PARTITION_BYTES`."""
        return max(1, -(-sum(p.stat().st_size for p in self._files()) // PARTITION_BYTES))

    def read(self, partition: int, partitions: int) -> pa.Table:
        """The rows of one consumer, by key, then in the order of the producers' numbers."""
        return _in_order(self._pieces(*_edges(partition, partitions)))

    def tables(self, partition: int, partitions: int) -> Iterator[pa.Table]:
        """The rows of `read` in tables of at most about `PARTITION_BYTES`, even if most have one key.

        Rows of one key are in one table where they fit it.
        """
        low, high = _edges(partition, partitions)
        files = [_SortedFile(path) for path in self._files()]
        pieces = [piece for file in files for piece in file.pieces(low, high)]
        size, rows = sum(piece.nbytes for piece in pieces), sum(piece.num_rows for piece in pieces)
        cuts = _cuts(files, low, high, _rows_of(PARTITION_BYTES, size, rows))
        yield from _tables(files, cuts) if cuts else [files[0].empty]

    def ordered(self, partition: int, partitions: int) -> Iterator[tuple[pa.Table, int]]:
        """The rows of one consumer in the order of `read`, as places in the mapped files: nothing is copied."""
        pieces = self._pieces(*_edges(partition, partitions))
        keys = np.concatenate([column(piece, KEY) for piece in pieces])
        piece_of = np.repeat(np.arange(len(pieces)), [piece.num_rows for piece in pieces])
        row_of = np.concatenate([np.arange(piece.num_rows) for piece in pieces])
        for place in np.argsort(keys, kind="stable").tolist():
            yield pieces[piece_of[place]], int(row_of[place])

    def lookup(self, key: int) -> pa.Table:
        """The rows with exactly this key, in the order of the producers' numbers."""
        return pa.concat_tables(self._pieces(key, key + 1)).combine_chunks()

    def _pieces(self, low: int, high: int) -> list[pa.Table]:
        """The rows with keys in [low, high), as they lie in the files; an empty table where there are none."""
        files = [_SortedFile(path) for path in self._files()]
        return [piece for file in files for piece in file.pieces(low, high)] or [files[0].empty]

    def _files(self) -> list[Path]:
        """The files of the newest level by their numbers, which may have more digits than others."""
        levels = sorted(self.folder.glob("merged-*"), key=lambda path: int(path.name.split("-")[1]))
        newest = levels[-1] if levels else self.folder
        return sorted(newest.glob("*.arrow"), key=lambda path: int(path.stem))


class _SortedFile:
    """A file of an exchange, mapped: nothing is read before it is used."""

    def __init__(self, path: Path):
        with open(path, "rb") as raw:
            self._map = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._batches: dict[int, pa.RecordBatch] = {}
        metadata = self._reader.schema.metadata or {}
        self.size = len(self._map)
        self.starts = np.frombuffer(metadata.get(_STARTS, bytes(8)), np.uint64)

    @property
    def empty(self) -> pa.Table:
        return self._reader.schema.remove_metadata().empty_table()

    def slices(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(batch, first row, end) of the rows with keys in [low, high)."""
        first = int(np.searchsorted(self.starts, np.uint64(low)))
        if first == len(self.starts) or int(self.starts[first]) > low:
            first -= 1  # the one that begins below
        for number in range(max(0, first), _position(self.starts, high)):
            keys = self._batch(number).column(KEY).to_numpy()
            start, end = _position(keys, low), _position(keys, high)
            if end > start:
                yield number, start, end

    def pieces(self, low: int, high: int) -> list[pa.Table]:
        slices = self.slices(low, high)
        return [pa.Table.from_batches([self._batch(n).slice(start, end - start)]) for n, start, end in slices]

    def count(self, low: int, high: int) -> int:
        return sum(end - start for _, start, end in self.slices(low, high))

    def forget(self) -> None:
        """Give the memory of what was read back to the system; it can be read again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._batches:
            batch = self._reader.get_batch(number)
            self._batches[number] = batch.replace_schema_metadata(None) if batch.schema.metadata else batch
        return self._batches[number]


def _merge(task: tuple[list[str], str], number: int, *, folder: Path) -> dict[str, Any]:
    """Merge some files into one, in batches of about `PARTITION_BYTES`, and delete them."""
    names, target = task
    if not (folder / target).exists():  # else a run before this one was killed while it deleted them
        files = [_SortedFile(folder / name) for name in names]
        size, rows = sum(file.size for file in files), sum(file.count(0, _KEYS) for file in files)
        cuts = _cuts(files, 0, _KEYS, _rows_of(PARTITION_BYTES, size, rows))
        schema = files[0].empty.schema.with_metadata({_STARTS: np.array(_starts(files, cuts), np.uint64).tobytes()})

        def tables() -> Iterator[pa.Table]:
            for table in _tables(files, cuts):
                yield table
                for file in files:
                    file.forget()

        write_tables(folder / target, schema, tables())
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return {}


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file of one batch, whole or not at all."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write an Arrow file with a batch for each table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    with open(temporary, "wb") as raw:
        with pa.ipc.new_file(raw, schema) as writer:
            for table in tables:
                for batch in table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]:
                    writer.write_batch(batch)
        raw.flush()
        os.fsync(raw.fileno())
    os.replace(temporary, path)


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


def _edges(partition: int, partitions: int) -> tuple[int, int]:
    """The keys [low, high) of one consumer."""
    return (partition * _KEYS) // partitions, ((partition + 1) * _KEYS) // partitions


def _position(sorted_keys: np.ndarray, edge: int) -> int:
    """How many keys lie below the edge, which may be one above the largest."""
    return len(sorted_keys) if edge == _KEYS else int(np.searchsorted(sorted_keys, np.uint64(edge)))


def _rows_of(size: int, all_bytes: int, all_rows: int) -> int:
    """How many rows take so many bytes."""
    return max(1, size * all_rows // max(1, all_bytes))


def _in_order(pieces: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(pieces).combine_chunks()
    return table.take(pa.array(np.argsort(column(table, KEY), kind="stable")))


def _cuts(files: list[_SortedFile], low: int, high: int, rows: int) -> list[tuple[int, int, int]]:
    """Ranges of keys (low, high, most rows in a table) that together are [low, high).

    Each has at most `rows` rows, if it is not of a single key. Those without rows are left out.
    """
    size = sum(file.count(low, high) for file in files)
    if high - low == 1 or size <= rows:
        return [(low, high, rows)] if size else []
    middle = (low + high) // 2
    return [*_cuts(files, low, middle, rows), *_cuts(files, middle, high, rows)]


def _tables(files: list[_SortedFile], cuts: list[tuple[int, int, int]]) -> Iterator[pa.Table]:
    """The rows of the ranges in order: a table each, several of one key that has too many rows."""
    for low, high, rows in cuts:
        pieces = [piece for file in files for piece in file.pieces(low, high)]
        if sum(piece.num_rows for piece in pieces) <= rows:
            yield _in_order(pieces)
        else:
            yield from (piece.slice(at, rows) for piece in pieces for at in range(0, piece.num_rows, rows))


def _starts(files: list[_SortedFile], cuts: list[tuple[int, int, int]]) -> list[int]:
    """The lowest key that each table of `_tables` may hold."""
    starts: list[int] = []
    for low, high, rows in cuts:
        sizes = [end - start for file in files for _, start, end in file.slices(low, high)]
        starts += [low] * (1 if sum(sizes) <= rows else sum(-(-size // rows) for size in sizes))
    return starts
