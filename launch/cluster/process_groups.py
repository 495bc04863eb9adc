"""The process group of a command that was started in a session of its own: signal it, and see which of its processes live."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def signal_group(group: int, number: signal.Signals) -> None:
    """Signal a process group of ours; one that has ended meanwhile, and whose number may be somebody else's, is let be."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def processes_of(group: int) -> list[int]:
    """Living processes of a process group, from /proc (those not yet reaped by their parent are dead)."""
    living = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            living.append(int(path.parent.name))
    return living
