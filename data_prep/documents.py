"""Documents on disk: jsonl (plain, .gz, .zst) and parquet, read record by record with every defect located.

A document is a dict with `id` and `text` (both non-empty strings) and whatever else it came with; `lang`,
`source`, `url` and `license` have meaning to later stages. A large file is cut into parts that tasks read
side by side: plain jsonl by bytes, parquet by row groups. A compressed stream has no middle to start from.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard
from isal import igzip, isal_zlib

from recipe.base.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PART_BYTES = 256 * 1024**2  # of a file, for one task: about a minute of curation
MAX_RECORD_BYTES = 32 * 1024**2  # of one line or text: six of the longest novels; so a worker's memory has a bound
Document = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What one task reads: a file, or some of it.

    `start` and `stop` are bytes of plain jsonl (a line belongs to the part in which it starts) or row groups of
    parquet; `stop` None is the end of the file.
    """

    path: Path
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document, set aside with its place and reason."""

    file: str
    record: int  # line or row, from 1 at the start of the part
    reason: str
    start: str  # how it begins, for a human to recognise it
    part_start: int = 0  # where the part starts: a byte of jsonl, a row group of parquet


def document_files(path: str | Path) -> list[Path]:
    """Every document file at `path` (a file, or a folder searched through), in a stable order.

    Raises:
        UserError: nothing there, or nothing of a known suffix.
    """
    path = Path(path)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; convert it or rename it")
        return [path]
    if not path.is_dir():
        raise UserError(f"--input {path} does not exist; give a file or folder of documents")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not found:
        raise UserError(f"--input {path} holds no {', '.join(SUFFIXES)} file; give a folder of documents")
    return found


def unread_files(path: str | Path) -> list[Path]:
    """The files of a folder that `document_files` leaves out, but for hidden ones, in a stable order."""
    path = Path(path)
    if not path.is_dir():
        return []
    files = (p for p in path.rglob("*") if p.is_file() and not p.name.endswith(SUFFIXES))
    return sorted(p for p in files if not any(name.startswith(".") for name in p.relative_to(path).parts))


def parts_of(path: Path, part_bytes: int = PART_BYTES) -> list[Part]:
    """Parts of about `part_bytes` that together are the file."""
    if path.name.endswith(".jsonl"):
        starts = list(range(0, max(1, path.stat().st_size), part_bytes))
    elif path.name.endswith(".parquet"):
        with _damage_named(path), pq.ParquetFile(path) as file:
            ends = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        starts, filled = [0], 0
        for group, size in enumerate(ends):
            if filled and filled + size > part_bytes:
                starts.append(group)
                filled = 0
            filled += size
    else:
        starts = [0]
    return [Part(path, start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def read_documents(
    source: Path | Part, on_bad: Callable[[BadRecord], None], fields: dict[str, str] | None = None
) -> Iterator[Document]:
    """Yield the documents of one file or part; `on_bad` gets each record that is none.

    Args:
        source: the file or part.
        on_bad: called with each broken or incomplete record; raises to stop the reading.
        fields: our name -> the file's name, for files that call them otherwise.

    Raises:
        UserError: the file itself is damaged or unreadable (a truncated .gz, a parquet without footer).
    """
    for _, document in numbered_documents(source, on_bad, fields):
        yield document


def numbered_documents(
    source: Path | Part, on_bad: Callable[[BadRecord], None], fields: dict[str, str] | None = None
) -> Iterator[tuple[int, Document]]:
    """Like `read_documents`, each document with its record's number, from 0 at the start of the part."""
    part = source if isinstance(source, Part) else Part(source)
    renames = {theirs: ours for ours, theirs in (fields or {}).items() if theirs != ours}
    for number, raw in enumerate(records(part)):
        record, reason = _parse(raw)
        if record is not None:
            for theirs, ours in renames.items():
                if theirs in record:
                    record[ours] = record.pop(theirs)
            reason = defect(record)
        if reason is None:
            assert record is not None
            yield number, record
        else:
            start = raw[:200].decode("utf-8", "replace") if isinstance(raw, bytes) else repr(raw)[:200]
            on_bad(BadRecord(part.path.name, number + 1, reason, start, part.start))


def records(part: Part) -> Iterator[bytes | Document]:
    """The records of a part as they are: lines of jsonl that are not blank, rows of parquet."""
    with _damage_named(part.path):
        if part.path.name.endswith(".parquet"):
            yield from _rows(part)
            return
        with open(part.path, "rb") as raw:
            lines = _lines_between(raw, part) if part.path.name.endswith(".jsonl") else _lines(part.path.name, raw)
            yield from (line for line in lines if line.strip())


class Written(NamedTuple):
    """What was written: the number of documents, and path, bytes, sha256 and xxh3_128 of each file."""

    documents: int
    files: list[dict[str, Any]]

    def below(self, output: Path) -> list[dict[str, Any]]:
        """The files as a manifest lists them, with their paths relative to its folder."""
        return [{**file, "path": str(Path(file["path"]).relative_to(output))} for file in self.files]


def write_documents(path: Path, documents: Iterable[Document]) -> Written:
    """Write documents as `path` (.jsonl, .jsonl.gz, .jsonl.zst or .parquet), which appears only when complete."""
    if path.name.endswith(".parquet"):
        rows = list(documents)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Hashed(_partial(path)) as raw:
            pq.write_table(pa.Table.from_pylist(rows), raw, compression="zstd")
        os.replace(_partial(path), path)
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
    for name in chain([f"{number:05d}"], (f"{number:05d}-{i:03d}" for i in range(1, 1000))):
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


class _WholeFile:
    """A jsonl file, compressed by its suffix, that has its name only when it was closed without an error."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self.facts: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = _Hashed(_partial(path))
        self._handle = _compressor(path.name, self._raw)

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
            os.replace(_partial(self.path), self.path)
            self.facts = {"path": str(self.path), **self._raw.facts()}


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


_DAMAGE: tuple[Any, ...] = (
    EOFError,
    gzip.BadGzipFile,
    isal_zlib.error,
    zstandard.ZstdError,
    pa.ArrowInvalid,
)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Errors of reading `path` as one sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged or truncated; fetch it again or remove it ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _rows(part: Part) -> Iterator[Document]:
    with pq.ParquetFile(part.path) as file:
        groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
        for batch in file.iter_batches(batch_size=256, row_groups=list(groups)):
            yield from batch.to_pylist()


def _lines_between(raw: BinaryIO, part: Part) -> Iterator[bytes]:
    if part.start:
        raw.seek(part.start - 1)
        raw.readline()
    at = raw.tell()
    for line, size in _bounded_lines(raw):
        if part.stop is not None and at >= part.stop:
            return
        at += size
        yield line


def _lines(name: str, raw: BinaryIO) -> Iterator[bytes]:
    # One line behind: a file that ends early ends in half a line, which is no record of its own.
    before = b""
    for line, _ in _bounded_lines(_decompressor(name, raw)):
        yield before
        before = line
    yield before


def _bounded_lines(handle: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line and its size in the file; of one longer than `MAX_RECORD_BYTES` so much and a byte more."""
    while line := handle.readline(MAX_RECORD_BYTES + 1):
        size = len(line)
        end = line
        while not end.endswith(b"\n") and size > MAX_RECORD_BYTES:
            end = handle.readline(1 << 20)
            if not end:
                break
            size += len(end)
        yield line, size


class _WholeFrames(io.RawIOBase):
    """A zstd stream that raises at a truncated end, which zstandard's own reader takes for the end."""

    def __init__(self, raw):
        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._pending, self._in_frame = memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._pending:
            chunk = self._raw.read(1 << 17)
            if not chunk:
                if self._in_frame:
                    raise EOFError("zstd frame ends early")
                return 0
            self._pending = memoryview(self._feed(chunk))
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size

    def _feed(self, chunk: bytes) -> bytes:
        out = b""
        while chunk:
            self._in_frame = True
            out += self._frame.decompress(chunk)
            chunk = self._frame.unused_data
            if self._frame.eof:
                self._in_frame = False
                self._frame = self._decompressor.decompressobj()
            else:
                break
        return out


def _decompressor(name: str, raw: BinaryIO) -> BinaryIO:
    if name.endswith(".gz"):
        return io.BufferedReader(igzip.IGzipFile(fileobj=raw), 1 << 20)  # a third of zlib's time
    return io.BufferedReader(_WholeFrames(raw), 1 << 20)


def _compressor(name: str, raw):
    if name.endswith(".gz"):
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # no name or time: same bytes each run
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(raw, closefd=False)
    return io.BufferedWriter(raw)


def _parse(raw: bytes | Document) -> tuple[Document | None, str | None]:
    if isinstance(raw, dict):
        return raw, None
    if len(raw) > MAX_RECORD_BYTES:
        return None, f"longer than {MAX_RECORD_BYTES:,} bytes"
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return None, f"not JSON: {error.msg}"
    return (record, None) if isinstance(record, dict) else (None, "not a JSON object")


def defect(record: Document) -> str | None:
    for name in ("id", "text"):
        value = record.get(name)
        if value is None:
            return f"missing field '{name}'"
        if not isinstance(value, str):
            return f"field '{name}' is {type(value).__name__}, not a string"
        if not value.strip():
            return f"field '{name}' is empty"
        if len(value) > MAX_RECORD_BYTES:
            return f"field '{name}' is longer than {MAX_RECORD_BYTES:,} characters"
    return None
