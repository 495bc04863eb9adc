"""When training is to end before its schedule does: a signal, a file, or a time limit; always with a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal

import torch.distributed as dist

from recipe.base.ranks import STOP_SIGNALS
from recipe.run.early_stop import asked_by_file, training_begins

Reason = Literal["signal", "file", "time limit"]
MARGIN_S = 30.0  # besides twice what the last save and the last step took


def process_age_s() -> float:
    """Seconds since this process was started; imports and the building of an engine count."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as handle:
        started_ticks = int(handle.read().rpartition(")")[2].split()[19])  # field 22 of proc(5), since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


class StopRequest:
    """Any rank may be signalled; rank 0 looks at the file and the clock. The ranks learn of it together in the step.

    Args:
        file: whoever makes it asks the run to stop; removed when the run has.
        time_limit_s: of this process, from its start; None: Slurm's end of the job if it says one.
    """

    def __init__(self, file: Path, time_limit_s: float | None):
        self._file = file
        self._signal: int | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)
        training_begins()
        left_s = None if time_limit_s is None else time_limit_s - process_age_s()
        if left_s is None and "SLURM_JOB_END_TIME" in os.environ:
            left_s = float(os.environ["SLURM_JOB_END_TIME"]) - time.time()
        self._deadline = None if left_s is None else time.monotonic() + left_s
        self.needed_s = 0.0  # what a step and a save, until it is on disk, take, as far as is known

    def reason(self) -> Reason | None:
        """Why this rank wants to stop."""
        if self._signal is not None:
            return "signal"
        if dist.get_rank() != 0:
            return None
        if asked_by_file(self._file):
            return "file"
        if self._deadline is not None and time.monotonic() > self._deadline - MARGIN_S - 2 * self.needed_s:
            return "time limit"
        return None

    def answered(self) -> None:
        """The run has stopped."""
        with suppress(OSError):  # the checkpoint is saved; a supervisor removes the file too
            self._file.unlink(missing_ok=True)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
