"""This process among those that a launcher started, and its environment."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from recipe.base.errors import UserError

# Exit codes of a launched script besides 0 and 2 (what a user must change): start again from the newest checkpoint.
RESTART = 75  # EX_TEMPFAIL of sysexits.h
SHM_BUFFER_NAME = "deepspeed_allreduce_buffer"  # of DeepSpeed's csrc/cpu/comm/shm.cpp
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # ask a run to save and stop


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """These variables for a while, also in processes that are started meanwhile; then those that there were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_first_rank() -> bool:
    """Whether this process speaks for all; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """This process's rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int | None:
    """Ranks that the launcher started; None without one."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def required_world_size() -> int:
    """Ranks that the launcher started.

    Raises:
        UserError: started without a launcher.
    """
    size = launched_world_size()
    if size is None:
        raise UserError(f"this needs the launcher: deepspeed [--hostfile H] {' '.join(sys.argv)}")
    return size


def remove_shared_memory() -> None:
    """Unlink this rank's buffer of the CPU ranks' collective (66 MiB in /dev/shm), which DeepSpeed leaves behind at exit."""
    variables = ("MASTER_ADDR", "MASTER_PORT", "RANK")
    if all(name in os.environ for name in variables):
        names = (SHM_BUFFER_NAME, str(os.getuid()), *(os.environ[name] for name in variables))
        Path("/dev/shm", "_".join(names)).unlink(missing_ok=True)


def leave(code: int) -> NoReturn:
    """End the process of a launched script, whose files and process group are closed by now.

    Without the destructors that follow Python's end: on a busy machine a thread of a library below us is sometimes
    still alive there, and the abort would take the place of the exit code.
    """
    if launched_world_size() is None:
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # their file can be on a disk that is full
            stream.flush()
    os._exit(code)
