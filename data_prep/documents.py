"""Documents on disk: jsonl (plain, .gz, .zst) and parquet, read record by record with every defect located.

A document is a dict with `id` and `text` (both non-empty strings) and whatever else it came with; `lang`,
`source`, `url` and `license` have meaning to later stages.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from recipe.base.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
Document = dict[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document, set aside with its place and reason."""

    file: str
    record: int  # line or row, from 1
    reason: str
    start: str  # how it begins, for a human to recognise it


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


def read_documents(
    path: Path, on_bad: Callable[[BadRecord], None], fields: dict[str, str] | None = None
) -> Iterator[Document]:
    """Yield the documents of one file; `on_bad` gets each record that is none.

    Args:
        path: the file.
        on_bad: called with each broken or incomplete record; raises to stop the reading.
        fields: our name -> the file's name, for files that call them otherwise.

    Raises:
        UserError: the file itself is damaged or unreadable (a truncated .gz, a parquet without footer).
    """
    renames = {theirs: ours for ours, theirs in (fields or {}).items() if theirs != ours}
    records = (raw for raw in _records(path) if isinstance(raw, dict) or raw.strip())
    for number, raw in enumerate(records, start=1):
        record, reason = _parse(raw)
        if record is not None:
            for theirs, ours in renames.items():
                if theirs in record:
                    record[ours] = record.pop(theirs)
            reason = _defect(record)
        if reason is None:
            assert record is not None
            yield record
        else:
            start = raw[:200].decode("utf-8", "replace") if isinstance(raw, bytes) else repr(raw)[:200]
            on_bad(BadRecord(path.name, number, reason, start))


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents as `path` (.jsonl, .jsonl.gz, .jsonl.zst or .parquet), which appears only when complete.

    Returns:
        how many were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    if path.name.endswith(".parquet"):
        rows = list(documents)
        count = len(rows)
        pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    else:
        with open(partial, "wb") as raw:
            with _compressor(path.name, raw) as handle:
                for document in documents:
                    handle.write(orjson.dumps(document) + b"\n")
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
    os.replace(partial, path)
    return count


def _records(path: Path) -> Iterator[bytes | Document]:
    damaged = f"{path} is damaged or truncated; fetch it again or remove it"
    try:
        if path.name.endswith(".parquet"):
            for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
                yield from batch.to_pylist()
            return
        with open(path, "rb") as raw:
            # One line behind: a file that ends early ends in half a line, which is no record of its own.
            before = b""
            for line in _decompressor(path.name, raw):
                yield before
                before = line
            yield before
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, pa.ArrowInvalid) as error:
        raise UserError(f"{damaged} ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


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


def _decompressor(name: str, raw):
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if name.endswith(".zst"):
        return io.BufferedReader(_WholeFrames(raw), 1 << 20)
    return raw


def _compressor(name: str, raw):
    if name.endswith(".gz"):
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # no name or time: same bytes each run
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
    return io.BufferedWriter(io.FileIO(raw.fileno(), "wb", closefd=False))


def _parse(raw: bytes | Document) -> tuple[Document | None, str | None]:
    if isinstance(raw, dict):
        return raw, None
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return None, f"not JSON: {error.msg}"
    return (record, None) if isinstance(record, dict) else (None, "not a JSON object")


def _defect(record: Document) -> str | None:
    for name in ("id", "text"):
        value = record.get(name)
        if value is None:
            return f"missing field '{name}'"
        if not isinstance(value, str):
            return f"field '{name}' is {type(value).__name__}, not a string"
        if not value.strip():
            return f"field '{name}' is empty"
    return None
