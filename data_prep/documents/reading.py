"""Documents on disk: lines of JSON (plain or compressed) and parquet, read record by record with every defect located.

A document is a dict with `id` and `text` (both non-empty strings) and whatever else it came with; `lang`,
`source`, `url` and `license` have meaning to later stages and are strings (fields.py). A large file is cut into parts
that tasks read side by side: plain lines by bytes, parquet by row groups. A compressed stream has no middle to start
from.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_prep.core.partial_files import partial_path, remove_following
from data_prep.documents.columns import Columns
from data_prep.documents.compression import codec_of, damage_named, packed, unpacked
from data_prep.documents.fields import DOCUMENT_FIELDS, Document, Named, Renames, defect
from data_prep.documents.json_lines import BOM, MAX_RECORD_BYTES, check_lines, parse
from data_prep.documents.listing import document_files, is_parquet, unread_files
from recipe.base.errors import UserError

__all__ = [
    "BadRecord",
    "Document",
    "Part",
    "document_files",
    "numbered_documents",
    "parse",
    "parts_of",
    "read_documents",
    "records",
    "unread_files",
    "write_documents",
    "write_part",
]
_SKIP_BYTES = 1 << 20  # of a line at a time that is passed over
PART_BYTES = 256 * 1024**2  # of a file, for one task: about a minute of curation


@dataclass(frozen=True)
class Part:
    """What one task reads: a file, or some of it.

    `start` and `stop` are bytes of plain lines (a line belongs to the part in which it starts) or row groups of
    parquet; `stop` None is the end of the file.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    name: str = ""  # of the file in ids by position; its own where this is empty


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document, set aside with its place and reason."""

    file: str
    record: int  # line or row, from 1 at the start of the part
    reason: str
    start: str  # how it begins, for a human to recognise it
    part_start: int = 0  # where the part starts: a byte of jsonl, a row group of parquet


def parts_of(path: Path, part_bytes: int = PART_BYTES, name: str = "") -> list[Part]:
    """Parts of about `part_bytes` that together are the file.

    Raises:
        UserError: by its beginning the file is not what its name says, or does not hold one JSON object a line.
    """
    if is_parquet(path):
        with damage_named(path), pq.ParquetFile(path) as file:
            ends = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        starts, filled = [0], 0
        for group, size in enumerate(ends):
            if filled and filled + size > part_bytes:
                starts.append(group)
                filled = 0
            filled += size
    else:
        check_lines(path)
        starts = [0] if codec_of(path.name) else list(range(0, max(1, path.stat().st_size), part_bytes))
    return [Part(path, start, stop, name) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def read_documents(
    source: Path | Part,
    on_bad: Callable[[BadRecord], None],
    fields: Mapping[str, Named] | None = None,
    number_ids: bool = False,
) -> Iterator[Document]:
    """The documents of one file or part; `on_bad` gets each record that is none.

    Args:
        source: the file or part.
        on_bad: called with each broken or incomplete record; raises to stop the reading.
        fields: our name -> the file's name, for files that call them otherwise; a dot leads into a field, None leaves
            ours out, and as the name of the id numbers all records.
        number_ids: give records without an id one by their position: the file's name and the byte or row.

    Raises:
        UserError: the file itself is damaged or unreadable (a truncated .gz, a parquet without footer).
    """
    return map(itemgetter(1), numbered_documents(source, on_bad, fields, number_ids))


def numbered_documents(
    source: Path | Part,
    on_bad: Callable[[BadRecord], None],
    fields: Mapping[str, Named] | None = None,
    number_ids: bool = False,
) -> Iterator[tuple[int, Document]]:
    """Like `read_documents`, each document with its record's number, from 0 at the start of the part."""
    part = source if isinstance(source, Part) else Part(source)
    renames = Renames(fields)
    number_ids = number_ids or renames.numbered
    for number, (position, raw) in enumerate(_positioned(part, renames.top_names)):
        reason: str | None
        try:
            if len(raw) > MAX_RECORD_BYTES:
                raise ValueError(f"longer than {MAX_RECORD_BYTES:,} bytes")
            record = parse(raw) if isinstance(raw, bytes) else raw
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            reason = str(error)
        else:
            if renames:
                renames.apply(record)
            if number_ids and record.get("id") is None:
                record["id"] = f"{part.name or part.path.name}/{position}"
            reason = defect(record, renames, MAX_RECORD_BYTES, raw if isinstance(raw, bytes) else b"")
        if reason is None:
            yield number, record
        else:
            start = raw[:200].decode("utf-8", "replace") if isinstance(raw, bytes) else repr(raw)[:200]
            on_bad(BadRecord(part.path.name, number + 1, reason, start, part.start))


def records(part: Part) -> Iterator[bytes | Document]:
    """The records of a part as they are: lines that are not blank, for `parse`, and rows of parquet."""
    for _, record in _positioned(part, DOCUMENT_FIELDS):
        yield record


def _positioned(part: Part, text_columns: Collection[str]) -> Iterator[tuple[int, bytes | Document]]:
    """The records of a part, each with the byte or row of the whole (unpacked) file at which it is."""
    with damage_named(part.path):
        if is_parquet(part.path):
            yield from _rows(part, text_columns)
            return
        with open(part.path, "rb") as raw:
            lines = unpacked(part.path, raw) if codec_of(part.path.name) else raw
            for at, line in _bounded_lines(lines, _first_line(raw, part) if part.start else 0, part.stop):
                if line[:1] == b"{":
                    yield at, line
                else:
                    line = line.removeprefix(BOM)  # of the file, or of one that was appended to it
                    if line and not line.isspace():
                        yield at, line


def _rows(part: Part, text_columns: Collection[str]) -> Iterator[tuple[int, Document]]:
    # int96 is of the old Impala and Spark; in nanoseconds it would wrap around outside 1677 to 2262
    with pq.ParquetFile(part.path, coerce_int96_timestamp_unit="us") as file:
        groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
        position = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        columns = Columns(part.path, file.schema_arrow, text_columns)
        for batch in file.iter_batches(batch_size=256, row_groups=list(groups)):
            yield from enumerate(columns.rows(batch), position)
            position += batch.num_rows


def _first_line(raw: BinaryIO, part: Part) -> int:
    """Where the first line starts that starts in the part or behind it; the file is left there.

    A line that goes on beyond the part is not read to its end, so that one of many parts is not read by each of them.
    """
    at = part.start - 1
    raw.seek(at)
    while piece := raw.readline(_SKIP_BYTES):
        at += len(piece)
        if piece.endswith(b"\n") or (part.stop is not None and at >= part.stop):
            break
    return at


def _bounded_lines(handle: BinaryIO, at: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """The lines that start from `at` on and before `stop`, each with its position.

    Of a line longer than `MAX_RECORD_BYTES` it is so much and a byte more.

    One line behind: a compressed file that ends early ends in half a line, which is no record of its own.
    """
    line = handle.readline(MAX_RECORD_BYTES + 1) if stop is None or at < stop else b""
    while line and (stop is None or at < stop):
        size = len(line)
        if size > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while end := handle.readline(_SKIP_BYTES):
                size += len(end)
                if end.endswith(b"\n"):
                    break
        following = handle.readline(MAX_RECORD_BYTES + 1)
        yield at, line
        at += size
        line = following


class Written(NamedTuple):
    """What was written: the number of documents, and path, bytes, sha256 and xxh3_128 of each file."""

    documents: int
    files: list[dict[str, Any]]

    def below(self, output: Path) -> list[dict[str, Any]]:
        """The files as a manifest lists them, with their paths relative to its folder."""
        return [{**file, "path": str(Path(file["path"]).relative_to(output))} for file in self.files]


def write_documents(path: Path, documents: Iterable[Document]) -> Written:
    """Write documents as `path`, in the format that its suffix names, which appears only when complete."""
    if is_parquet(path):
        rows = list(documents)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = _table(path, rows)
        try:
            with _Hashed(partial_path(path)) as raw:
                pq.write_table(table, raw, compression="zstd")
        except pa.ArrowNotImplementedError as error:  # an object without fields
            raise UserError(f"{path}: {error}; write .jsonl.zst, which needs no types") from None
        os.replace(partial_path(path), path)
        return Written(len(rows), [{"path": str(path), **raw.facts()}])
    count = 0
    with _WholeFile(path) as file:
        for document in documents:
            file.write(document)
            count += 1
    return Written(count, [file.facts])


def write_part(
    folder: Path, number: int, documents: Iterable[Document | bytes], part_bytes: int = PART_BYTES
) -> Written:
    """Write what one task keeps as `folder/NNNNN.jsonl.zst`, and `NNNNN-001` and so on beyond `part_bytes` of jsonl.

    So what one large file became is again several tasks for the next stage. Lines of jsonl pass as they are.
    """
    documents, count, files = iter(documents), 0, list[dict[str, Any]]()
    names = chain([f"{number:05d}"], (f"{number:05d}-{i:03d}" for i in range(1, 1000)))
    for name in names:
        is_last = True
        with _WholeFile(folder / f"{name}.jsonl.zst") as file:
            for document in documents:
                file.write(document)
                count += 1
                if file.size >= part_bytes:
                    is_last = False
                    break
        files.append(file.facts)
        if is_last:
            remove_following(folder / f"{name}.jsonl.zst" for name in names)
            return Written(count, files)
    raise UserError(f"{folder} would need more than 1,000 files for one input; split the input")


class _Hashed(io.FileIO):
    """A file being written, with the digests of what went into it; flushed to disk when it is closed."""

    def __init__(self, path: Path):
        super().__init__(path, "wb")
        self._bytes, self._sha256, self._xxh3 = 0, hashlib.sha256(), xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            written = 0
            while written < len(view):
                written += super().write(view[written:]) or 0
            self._sha256.update(view)
            self._xxh3.update(view)
            self._bytes += written
        return written

    def close(self) -> None:
        if not self.closed:
            os.fsync(self.fileno())
        super().close()

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest(), "xxh3_128": self._xxh3.hexdigest()}


def _table(path: Path, rows: list[Document]) -> pa.Table:
    """All fields of all rows, in the order in which they come; a column has one type."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise UserError(
                f"{path}: the values of field {name} are not of one type ({error}); write .jsonl.zst, which needs none"
            ) from None
    return pa.table(columns)


class _WholeFile:
    """A jsonl file, compressed by its suffix, that has its name only when it was closed without an error."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self.facts: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = _Hashed(partial_path(path))
        self._handle = packed(path.name, self._raw)

    def write(self, document: Document | bytes) -> None:
        line = document if isinstance(document, bytes) else orjson.dumps(document)
        self.size += self._handle.write(line if line.endswith(b"\n") else line + b"\n")

    def __enter__(self) -> _WholeFile:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._raw:
            if kind is None:
                self._handle.close()
        if kind is None:
            os.replace(partial_path(self.path), self.path)
            self.facts = {"path": str(self.path), **self._raw.facts()}
