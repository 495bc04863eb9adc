"""The tasks of one phase in a folder that all machines see, from which workers claim one at a time.

  work.pickle   the function and the numbered tasks; written before any worker starts
  claims/N      task N is taken: a symbolic link whose target is the worker's name. One call makes it with its
                content or fails because there is one, on NFS too; so no two workers take a task, and none is
                taken by nobody. It stays when the task is done.
  results/N     what the task came to, whole or absent; the driver removes what it has read
  starts/NAME   a worker of this name has started

Only the driver releases a claim, so that a claim it has read is still that one when it removes it.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from data_prep.core.outcome import Function

Numbered = Sequence[tuple[int, Any]]


class TaskQueue:
    """One such folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._work, self._claims, self._results, self._starts = (
            folder / name for name in ("work.pickle", "claims", "results", "starts")
        )

    def write(self, function: Function, tasks: Numbered) -> None:
        """Make the queue, with no task taken."""
        for folder in (self._claims, self._results, self._starts):
            folder.mkdir(parents=True)
        # How a spawned process finds what `__main__` has defined; without the key with which processes of one
        # machine know each other, which must not lie on a disk.
        main = spawn.get_preparation_data("worker")
        main.pop("authkey", None)
        _write_whole(self._work, pickle.dumps((main, pickle.dumps((function, list(tasks))))), "driver")

    def load(self) -> tuple[Function, Numbered]:
        """The function and the tasks, in a worker."""
        main, work = pickle.loads(self._work.read_bytes())
        spawn.prepare(main)
        return pickle.loads(work)

    def is_open(self) -> bool:
        return self._work.exists()

    def close(self) -> None:
        """Have workers that come or go on find that there is nothing to do. What they have done stays."""
        self._work.unlink(missing_ok=True)

    def start(self, worker: str) -> None:
        (self._starts / worker).touch()

    def started(self) -> set[str]:
        """The names of all workers that ever started."""
        return set(_names(self._starts))

    def claim(self, number: int, worker: str) -> bool:
        """Take a task; False where it is taken."""
        path = self._claims / str(number)
        try:
            os.symlink(worker, path)
            return True
        except FileExistsError:
            return _target(path) == worker  # NFS repeats a call whose answer was lost

    def release(self, number: int) -> None:
        (self._claims / str(number)).unlink(missing_ok=True)

    def claimed(self) -> set[int]:
        return _numbers(self._claims)

    def worker_of(self, number: int) -> str | None:
        """The name of the worker that has the task; None where none has."""
        return _target(self._claims / str(number))

    def put(self, number: int, outcome: tuple[str, Any], worker: str) -> None:
        _write_whole(self._results / str(number), pickle.dumps(outcome), worker)

    def results(self) -> set[int]:
        """The tasks whose results lie there."""
        return _numbers(self._results)

    def result(self, number: int) -> tuple[str, Any]:
        return pickle.loads((self._results / str(number)).read_bytes())

    def discard(self, number: int) -> None:
        """Remove a result that was read."""
        (self._results / str(number)).unlink(missing_ok=True)

    def refresh(self, worker: str) -> None:
        """Have this machine ask for the folders again: NFS shows a folder as it was up to a minute ago.

        What this machine itself writes to a folder makes its view of it void.
        """
        for folder in (self._claims, self._results, self._starts):
            probe = folder / f".{worker}"
            with suppress(FileExistsError):
                os.symlink("probe", probe)
            probe.unlink(missing_ok=True)


def _write_whole(path: Path, data: bytes, worker: str) -> None:
    """A file that has its name when all of it is on disk; two workers never write to one temporary name."""
    temporary = path.with_name(f".{path.name}.{worker}")
    with open(temporary, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _numbers(folder: Path) -> set[int]:
    return {int(name) for name in _names(folder)}


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return None
