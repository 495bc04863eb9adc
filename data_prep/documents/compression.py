"""Files as streams of plain bytes: gzip, zstd, bzip2 and xz, with everything wrong with a file told in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard
from isal import igzip, isal_zlib

from recipe.base.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}  # suffix -> its tool
MAX_WINDOW_BYTES = 2**31  # of zstd --long=31, the most there is; zstd's own default refuses more than --long=27
# What a decompressor gets at a time. zstd's has no bound of what it gives for it, at most 128 KiB for the 4 bytes of a
# block of one repeated byte (RFC 8878, 3.1.1.2): 64 MiB.
_PIECE_BYTES = 1 << 11
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
                f"{path} needs the zstd dictionary that it was compressed with; unpack it: zstd -d -D DICTIONARY "
                f"{quote(str(path))}"
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
    return io.BufferedReader(_READERS[named](raw), 1 << 20) if named else raw


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


class _Streams(io.RawIOBase):
    """Compressed streams one behind the other as one, which raises where one of them is damaged or ends early.

    Python's own readers of bzip2 and xz take whatever is wrong behind the first stream for the end, and zstandard's a
    truncated end.

    Args:
        raw: the compressed bytes.
        start: a decompressor of one stream, with `decompress`, `eof` and `unused_data`.
        limit: a bound of what one call of `decompress` gives, for those that take one.
        padding: streams may be followed by zero bytes, of a multiple of so many.
    """

    def __init__(self, raw: BinaryIO, start: Callable[[], Any], limit: int | None = None, padding: int = 0):
        self._raw, self._start, self._padding = raw, start, padding
        self._limit = () if limit is None else (limit,)
        self._stream: Any = None
        self._input, self._pending, self._zeros = b"", memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._pending:
            if not self._input and getattr(self._stream, "needs_input", True):
                self._input = self._raw.read(_PIECE_BYTES)
                if not self._input:
                    self._must_be_between_streams()
                    return 0
            self._pending = memoryview(self._decompressed())
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size

    def _decompressed(self) -> bytes:
        """What the next piece of input gives, which may be nothing yet."""
        if self._stream is None:
            self._skip_padding()
            if not self._input:
                return b""
            self._must_be_between_streams()
            self._stream, self._zeros = self._start(), 0
        stream, piece, self._input = self._stream, self._input, b""
        out = stream.decompress(piece, *self._limit)
        if stream.eof:
            self._stream, self._input = None, stream.unused_data
        return out

    def _skip_padding(self) -> None:
        if self._padding:
            rest = self._input.lstrip(b"\0")
            self._zeros += len(self._input) - len(rest)
            self._input = rest

    def _must_be_between_streams(self) -> None:
        if self._stream is not None:
            raise EOFError("its compressed stream ends early")
        if self._padding and self._zeros % self._padding:
            raise EOFError(f"{self._zeros} zero bytes follow a stream, not a multiple of {self._padding}")


def _bzip2(raw: BinaryIO) -> _Streams:
    return _Streams(raw, bz2.BZ2Decompressor, limit=1 << 20)


def _xz(raw: BinaryIO) -> _Streams:
    # padding: The .xz File Format 1.2.1, section 2.2
    return _Streams(raw, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), limit=1 << 20, padding=4)


def _zstd(raw: BinaryIO) -> _Streams:
    return _Streams(raw, zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj)


_READERS: dict[str, Callable[[BinaryIO], _Streams]] = {"bzip2": _bzip2, "xz": _xz, "zstd": _zstd}
