"""What attempts that were killed may leave: files in the middle of being written, and whole ones that a later attempt of
the same task does not write again.

Files that are being written have names that no two processes share and no listing of documents shows.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Where this process writes what gets the name `path` when it is whole."""
    host = socket.gethostname().partition(".")[0]
    return path.with_name(f".{path.name}.{host}-{os.getpid()}{SUFFIX}")


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes have left anywhere below a folder that nobody writes to."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(SUFFIX):
                Path(parent, name).unlink(missing_ok=True)


def remove_following(paths: Iterable[Path]) -> None:
    """Remove the files that a task has not written now and an attempt before has, which are numbered without a gap.

    `paths` are the names that would follow. The last goes first, so that a kill leaves no gap either.
    """
    for path in reversed(list(takewhile(Path.exists, paths))):
        path.unlink(missing_ok=True)
