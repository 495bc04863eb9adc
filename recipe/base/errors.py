"""Errors that a user can act on, and how a script reports them.

A `UserError` is one sentence that says what is wrong and what to do about it. Scripts print it without
a traceback and exit with code 2; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

INTERRUPTED = 128 + 2  # exit code after ctrl-C, as of a shell
FIRST_RANK_SPEAKS_S = 10.0  # longer than the launcher takes to see a failed rank and end the others


class UserError(ValueError):
    """Something the user gave cannot work; the message says what to change.

    Subclasses may have arguments of their own: one that comes out of a worker process is put together from its
    message, not by calling its `__init__` again.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(of: type[UserError], arguments: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = of.__new__(of, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class ConfigError(UserError):
    """All the problems of one configuration file, found in one pass.

    Args:
        path: the file they were found in.
        problems: one sentence each.
    """

    def __init__(self, path: object, problems: Iterable[str]):
        self.problems = list(problems)
        assert self.problems, "a ConfigError needs at least one problem"
        if len(self.problems) == 1:
            message = f"{path}: {self.problems[0]}"
        else:
            message = f"{path} has {len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(message)


def read_all(*reads: Callable[[], Any]) -> list[Any]:
    """The results of all `reads`; if any raise `UserError`, one that holds all their messages."""
    results, messages = [], []
    for read in reads:
        try:
            results.append(read())
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("\n".join(messages))
    return results


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name closest to `name`, the known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known here: {', '.join(known)}" if known else ""


def what_to_do(error: BaseException) -> str | None:
    """The sentence for the user if `error` is one that they can act on, else None (a defect of ours).

    Besides `UserError` those are a disk that is full and a folder that may not be written.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"{error.filename or 'output'}: {os.strerror(error.errno)}; free or permit it and run again"
    return None


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a script's main: an error that the user can act on becomes one message and exit code 2, ctrl-C one and 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, OSError) as error:
            message = what_to_do(error)
            if message is None:
                raise
            _print_once_per_host(message)
            return 2
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
            return INTERRUPTED

    return wrapped


def _print_once_per_host(message: str) -> None:
    """Under a launcher all ranks of a host meet the same error; its first rank speaks for them.

    The launcher ends all ranks as soon as one has failed, so the others wait for the first to speak; one that is
    still there afterwards has an error of its own.
    """
    rank, first = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        time.sleep(FIRST_RANK_SPEAKS_S)
    host = "" if rank == "0" else f" ({socket.gethostname()}{'' if first else f', rank {rank}'})"
    print(f"error{host}: {message}", file=sys.stderr, flush=True)
