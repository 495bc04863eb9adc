"""What is asked of the disk, in order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def recorded_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A list to which every fsync adds the path of its file or folder, and every renaming both of its paths."""
    calls: list = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renaming(rename):
        def call(source, target) -> None:
            rename(source, target)
            calls.append(("rename", Path(source), Path(target)))

        return call

    monkeypatch.setattr(os, "fsync", flush)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))
    return calls
