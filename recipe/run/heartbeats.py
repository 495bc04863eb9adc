"""One small file per rank that says where it is; read by the other ranks' watchdogs and by the supervisor.

A beat is a number that grows, so that whether a rank lives is seen by reading twice: clocks of hosts need not agree,
and may be set while a run goes on.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.ranks import located
from recipe.run.records import SCHEMA_VERSION, VERSION_KEY, current


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank is."""

    rank: int
    host: str
    pid: int
    attempt: int  # the number of the start that it belongs to
    step: int  # that it works on
    phase: str
    place: int  # phases entered since the start; the same on all ranks that are at the same place
    beat: int
    machine: str = ""  # the machine's own name, where the host has another

    @property
    def where(self) -> str:
        """The host, for people."""
        return located(self.host, self.machine)


def write_heartbeat(folder: Path, heartbeat: Heartbeat) -> None:
    """Overwrite in place and at once: no rename, since thousands of ranks do this on a shared file system."""
    line = json.dumps({**asdict(heartbeat), VERSION_KEY: SCHEMA_VERSION}).ljust(511) + "\n"
    descriptor = os.open(folder / f"rank_{heartbeat.rank:05d}.json", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, line.encode(), 0)
    finally:
        os.close(descriptor)


def read_heartbeats(folder: Path, attempt: int) -> dict[int, Heartbeat]:
    """The ranks of one attempt; one that is being written just now is left out.

    Raises:
        UserError: a newer version wrote them.
    """
    beats = {}
    for path in folder.glob("rank_*.json"):
        try:
            beat = Heartbeat(**current(json.loads(path.read_text()), path))
        except UserError:
            raise
        except (ValueError, TypeError, OSError):
            continue
        if beat.attempt == attempt:
            beats[beat.rank] = beat
    return beats


def state_of_process(pid: int) -> str | None:
    """The kernel's word for a process of this host (`stopped`, `sleeping`, ...); None if there is none."""
    try:
        match = re.search(r"^State:\t\S \((.+)\)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return None
    return match[1] if match else None
