"""Files written whole or not at all, and checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name and flush, so that a reader or a crash sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def append_json(path: Path, value: Any) -> None:
    """Append one line; a single write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as handle:
        handle.write((json.dumps(value, ensure_ascii=False) + "\n").encode())


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines, without a last one that a kill has cut; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


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
