"""Files written whole or not at all, and checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A path to write to, which then replaces `path`: a reader or a loss of power sees the old file or the new one.

    On an error nothing of it stays. The folder must exist.

    Args:
        temporary: the path, in the same folder, where `path` with `.partial` behind it will not do.
    """
    temporary = temporary or path.with_name(path.name + ".partial")
    try:
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.absolute().parent)


def rename_folder(folder: Path, target: Path) -> None:
    """Give a folder, whose files are flushed, the name by which readers know that it is whole; a loss of power changes nothing."""
    for parent, _, _ in os.walk(folder):
        flush_folder(Path(parent))
    os.rename(folder, target)
    flush_folder(target.absolute().parent)


def write_text(path: Path, text: str) -> None:
    """Write so that a reader or a crash sees the old file or the new one; the folder is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def append_json(path: Path, value: Any) -> None:
    """Append one line; a single write, so that lines of several processes do not mix.

    After a line that a kill or a full disk has cut it begins a new one; readers leave the cut one out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    with open(path, "a+b", buffering=0) as handle:
        if _is_cut(handle):
            line = b"\n" + line
        write_all(handle, line)


def write_all(handle: IO[bytes], data: bytes | bytearray) -> None:
    """Write to an unbuffered file, which takes what there is room for at a time."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += handle.write(view[written:])


def _is_cut(handle: IO[bytes]) -> bool:
    if os.fstat(handle.fileno()).st_size == 0:
        return False
    handle.seek(-1, os.SEEK_END)
    return handle.read(1) != b"\n"


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines, without those that a kill or a full disk has cut; none if there is no file."""
    if not path.exists():
        return []
    with open(path, "rb") as handle:
        return list(parsed_lines(handle))


def parsed_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    """The values of whole lines. One that does not parse was cut: `append_json` began the next one after it."""
    for line in lines:
        if not line.endswith(b"\n"):
            continue
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError:
            # A number that is not finite is written as NaN or Infinity, which only Python's own reader, a slower one, knows.
            try:
                yield json.loads(line)
            except ValueError:
                continue


def flush_file(path: Path) -> None:
    """Have on the disk what was written to a file."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Make a folder's names (what was created and renamed in it) survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class HashedFile:
    """A file being written, flushed to disk when it is closed, with the size and SHA-256 of what went into it."""

    def __init__(self, path: Path):
        self._handle = open(path, "wb", buffering=0)
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        written = 0
        while written < len(view):
            written += self._handle.write(view[written:])
        self._bytes += written
        return written

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> dict[str, Any]:
        os.fsync(self._handle.fileno())
        self._handle.close()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        self._handle.close()
