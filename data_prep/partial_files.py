"""Names of files that are being written, which no two processes share and no listing of documents shows."""

from __future__ import annotations

import os
import socket
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
