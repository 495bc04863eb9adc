"""Files as streams of plain bytes: gzip, zstd, bzip2 and xz, with everything wrong with a file told in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard
from isal import igzip, isal_zlib

from recipe.base.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}  # suffix -> its tool
MAX_WINDOW_BYTES = 2**31  # of zstd --long=31, the most there is; zstd's own default refuses more than --long=27
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
}
_DAMAGE: tuple[Any, ...] = (
    EOFError,
    gzip.BadGzipFile,
    isal_zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    pa.ArrowInvalid,
)


def codec_of(name: str) -> str | None:
    """The tool whose format the file's name claims; None for one that is not compressed."""
    return CODECS.get(Path(name.lower()).suffix)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Errors of reading `path` as one sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        if "Dictionary mismatch" in str(error):
            raise UserError(
                f"{path} needs the zstd dictionary that it was compressed with; unpack it: zstd -d -D DICTIONARY {path}"
            ) from None
        raise UserError(_damaged(path, error)) from None
    except pa.ArrowNotImplementedError as error:
        raise UserError(f"{path} cannot be read: {error}; write it again without that") from None
    except OSError as error:
        if error.errno is None:  # of a codec or of Arrow, about the bytes rather than the disk
            raise UserError(_damaged(path, error)) from None
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _damaged(path: Path, error: BaseException) -> str:
    return f"{path} is damaged or truncated; fetch it again or remove it ({error})"


def unpacked(path: Path, raw: io.BufferedReader) -> BinaryIO:
    """The plain bytes of a file opened as `raw`.

    Raises:
        UserError: the content is not what the name says.
        EOFError: an empty file with the name of a compressed one.
    """
    named, magic = codec_of(path.name), _magic(raw)
    if magic == "empty":
        if named is None:
            return raw
        raise EOFError("it has no bytes")
    if magic != named:
        content = f"holds {magic} data" if magic else "is not compressed"
        claimed = f"is named as {named}" if named else "is named as plain text"
        raise UserError(f"{path} {claimed} but {content}; rename it, or fetch it again")
    if named == "gzip":
        return io.BufferedReader(igzip.IGzipFile(fileobj=raw), 1 << 20)  # a third of zlib's time
    if named == "bzip2":
        return io.BufferedReader(bz2.BZ2File(raw), 1 << 20)
    if named == "xz":
        return io.BufferedReader(lzma.LZMAFile(raw), 1 << 20)
    return io.BufferedReader(_WholeFrames(raw), 1 << 20) if named == "zstd" else raw


def _magic(raw: io.BufferedReader) -> str | None:
    start = raw.peek(8)
    if not start:
        return "empty"
    if start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5:  # a frame to be skipped, as pzstd writes; RFC 8878
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def packed(name: str, raw: io.FileIO) -> BinaryIO:
    """A writer into `raw`, compressed as `name` says; the same bytes for the same input."""
    codec = codec_of(name)
    if codec == "gzip":
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # type: ignore[return-value]
    if codec == "zstd":
        return zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(raw, closefd=False)
    if codec == "bzip2":
        return bz2.BZ2File(raw, "wb")  # type: ignore[return-value]
    if codec == "xz":
        return lzma.LZMAFile(raw, "wb")  # type: ignore[return-value]
    return io.BufferedWriter(raw)


class _WholeFrames(io.RawIOBase):
    """A zstd stream that raises at a truncated end, which zstandard's own reader takes for the end."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
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
