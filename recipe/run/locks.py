"""Locks on files, held until their process ends: the kernel frees them, also those of a process that was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recipe.base.errors import UserError
from recipe.base.ranks import host_name, located, machine_name

_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)  # POSIX allows lockf both
RETRY_S = 0.5


def lock_file(path: Path, *, subject: object, note: str = "", patience_s: float = 0.0) -> IO[str]:
    """Take a lock and write into its file who holds it; the lock lasts as long as the file that is returned is open.

    lockf is, of the kinds of locks, the one that NFS knows. A process loses it when it closes the file, under
    whatever descriptor: nothing else in the process may open it.

    Args:
        subject: what is in use when the lock is, for the message.
        note: what this process is, for whoever finds the lock taken.
        patience_s: that another process may take to let go.

    Raises:
        UserError: another process holds it, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(path, "a+", encoding="utf-8")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                handle.close()
                raise no_locks(path, error) from None
            if time.monotonic() >= deadline:
                handle.seek(0)
                name = handle.read().strip() or "another process"
                handle.close()
                raise in_use(subject, name) from None
            time.sleep(RETRY_S)
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {located(host_name(), machine_name())}{note and f' ({note})'}\n")
    handle.flush()
    return handle


@contextmanager
def in_turn(path: Path) -> Iterator[bool]:
    """Wait for a lock that processes take one after another, each for a while; gives whether the last holder died in its turn.

    A holder writes into the file that it is there, and empties it when it is done: what stands in a file that can be
    locked is of one that was killed, or whose work failed.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise no_locks(path, error) from None
        handle.seek(0)
        holder_died = bool(handle.read())
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {located(host_name(), machine_name())}\n")
        handle.flush()
        yield holder_died
        handle.truncate(0)


def lock_holder(path: Path) -> str | None:
    """Who holds a lock, without taking it and without a trace; None: nobody. Not for a lock of this process.

    Raises:
        UserError: the file system has no locks.
    """
    try:
        handle = open(path, encoding="utf-8")
    except FileNotFoundError:
        return None
    with handle:
        try:
            os.lockf(handle.fileno(), os.F_TEST, 0)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise no_locks(path, error) from None
            return handle.read().strip() or "another process"
    return None


def in_use(subject: object, name: str) -> UserError:
    return UserError(f"{subject} is in use by {name}; end that run first or choose another run_dir")


def no_locks(path: Path, error: OSError) -> UserError:
    """A lock that nobody holds and that cannot be taken all the same: ENOLCK, ENOSYS, EOPNOTSUPP and the like."""
    return UserError(
        f"{path} cannot be locked ({os.strerror(error.errno or 0)}), and without a lock two runs could write to one folder; "
        "mount this file system with locks (NFS: without nolock and with its lock service, Lustre: with flock) or choose a "
        "folder on another one"
    )
