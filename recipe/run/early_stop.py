"""A stop that comes before the training loop can answer it ends the process at once: there is nothing to save yet.

A rank starts for minutes, most of them inside calls (a rendezvous, a collective, a compiler) during which Python runs no
signal handler. So a thread waits: Python writes each signal's number into a pipe (`signal.set_wakeup_fd`) at once. When
the loop takes over, signals are its own, and the thread only ends the process at the second ctrl-C.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from recipe.base.ranks import RESTART, STOP_SIGNALS, is_first_rank, remove_shared_memory
from recipe.run.folder import STOP, SUPERVISOR_LOCK
from recipe.run.locks import lock_holder

POLL_S = 0.5
_TRAINING = 0  # no signal has this number


class EarlyStop(threading.Thread):
    """See the module's text. Made and started first thing, by the main thread of a rank."""

    def __init__(self) -> None:
        super().__init__(name="early stop", daemon=True)
        self._training = False
        self._file: Path | None = None
        self._interrupts = 0  # since training began
        self._pipe, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        for number in STOP_SIGNALS:
            signal.signal(number, _nothing)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def watch(self, run_dir: Path) -> None:
        """From now on a file that asks the run to stop does so too."""
        self._file = run_dir / STOP

    def hand_over(self) -> None:
        """The training loop has its own handlers by now; what was asked before goes first through the pipe."""
        os.write(self._write_end, bytes([_TRAINING]))

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self._pipe], [], [], POLL_S)
            for number in os.read(self._pipe, 64) if ready else b"":
                self._take(number)
            if not self._training and asked_by_file(self._file):
                self._answer_file()

    def _take(self, number: int) -> None:
        if number == _TRAINING:
            self._training = True
        elif not self._training:
            if number in STOP_SIGNALS:
                _leave("stopped by a signal before the first step; no checkpoint is lost, start the same command again")
        elif number == signal.SIGINT:  # it alone: of one ctrl-C or one `kill` the launcher makes several SIGTERM
            self._interrupts += 1
            if self._interrupts > 1:
                _leave(
                    "the second ctrl-C: ended at once, without a checkpoint; --resume auto goes on from the newest one"
                )

    def _answer_file(self) -> None:
        """Leave, when all ranks have had the time to see the file; a supervisor wants to see it too, and removes it."""
        time.sleep(2 * POLL_S)
        try:
            if self._file is not None and lock_holder(self._file.with_name(SUPERVISOR_LOCK)) is None:
                self._file.unlink(missing_ok=True)
        finally:
            _leave("stopped by a file before the first step; no checkpoint is lost, start the same command again")


def asked_by_file(file: Path | None) -> bool:
    """Whether the file that asks a run to stop is there. A file system that does not answer now is asked again later."""
    try:
        return file is not None and file.exists()
    except OSError:
        return False


_current: EarlyStop | None = None


def answer_early_stops() -> EarlyStop:
    """Install and start it; from here until `training_begins` a stop ends this process with RESTART."""
    global _current
    _current = EarlyStop()
    _current.start()
    return _current


def training_begins() -> None:
    """The training loop answers from now on."""
    if _current is not None:
        _current.hand_over()


def _nothing(number: int, frame: FrameType | None) -> None:
    """Python writes to the pipe only of signals that have a handler."""


def _leave(message: str) -> None:
    try:
        remove_shared_memory()  # no session does, on this way out
        if is_first_rank():
            print(message, file=sys.stderr, flush=True)
    finally:
        os._exit(RESTART)
