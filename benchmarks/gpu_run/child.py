"""A child process in a session of its own: followed while it runs, and ended with all that it has started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import kill
from pathlib import Path

from launch.cluster.process_groups import processes_of, signal_group

POLL_S, GRACE_S = 0.5, 3.0  # between looks, and between SIGTERM and SIGKILL
STUCK_S = 10.0  # a process that a driver holds does not end by SIGKILL either
TIME_IS_OVER = "its time was over"


@dataclass(frozen=True)
class Ended:
    """How a child ended: by its exit code, negative for a signal, or for the reason for which it was ended."""

    code: int
    reason: str | None = None

    @property
    def how(self) -> str:
        if self.reason is not None:
            return f"ended since {self.reason}"
        return f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"


def run_child(
    words: Sequence[str], *, env: dict[str, str], cwd: Path, log: Path, limit_s: float, poll: Callable[[], str | None]
) -> Ended:
    """Run a command, its output in `log`.

    Args:
        poll: called several times a second and once after the end; a string is why the child must end now.
    """
    deadline = time.monotonic() + limit_s
    with open(log, "ab") as handle:
        process = subprocess.Popen(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
    try:
        reason = None
        while reason is None and not _ends_within(process, POLL_S):
            reason = poll() or (TIME_IS_OVER if time.monotonic() > deadline else None)
        if process.poll() is not None:  # it may have ended by itself just now
            reason = None
    finally:
        end_family(process)
    poll()
    return Ended(-signal.SIGKILL if process.returncode is None else process.returncode, reason)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End a child's whole process group, and what it has started in groups of their own: a GPU's memory is free then."""
    others = descendants(process.pid)
    if processes_of(process.pid):
        signal_group(process.pid, signal.SIGTERM)
        waited_until = time.monotonic() + GRACE_S
        while processes_of(process.pid) and time.monotonic() < waited_until:
            _ends_within(process, 0.05)  # which reaps it
            time.sleep(0.05)
        signal_group(process.pid, signal.SIGKILL)
    for pid in others:
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    _ends_within(process, STUCK_S)


def descendants(ancestor: int) -> list[int]:
    """The living processes below `ancestor`, from /proc, also those in sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    below, new = [], [ancestor]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        below += new
    return below


def last_line(log: Path) -> str:
    """The line of a log that says most of why a process ended: the last that names an error, else the last."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip("=-_ \t")]
    errors = [line for line in lines[-200:] if "error" in line.lower() and not line.startswith('File "')]
    said = [line for line in errors if not line.startswith("Fatal Python error")]  # a signal, which the exit code says
    return next(iter([*said[-1:], *errors[-1:], *lines[-1:]]), "it has printed nothing")[:300]
