"""How far the phases of a stage are: on a terminal a line that is written over, in a log a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from recipe.base.tables import ProgressLine, duration

LOG_EVERY_S = 30.0


class Progress:
    """Tells of one phase after the other. In a log at most about one line in `LOG_EVERY_S`, and the end of each longer phase.

    It has no thread, so that a process may fork: in a log a task that takes longer is seen when it ends.
    """

    def __init__(self, stage: str, clock: Callable[[], float] = time.monotonic):
        self._stage, self._clock = stage, clock
        self._logged = -math.inf
        self._on_terminal = sys.stderr.isatty()

    def start(self, line: str) -> None:
        """Tell what the stage is about to do."""
        self.log(line, always=True)

    @contextmanager
    def phase(self, name: str, tasks: int, done: int) -> Iterator[ProgressLine]:
        """A phase of so many tasks, of which some were done before this start."""
        started = self._clock()
        if tasks > done and not self._on_terminal:
            before = f", {done:,} of them done before" if done else ""
            self.log(f"phase {name} begins, {tasks:,} {'task' if tasks == 1 else 'tasks'}{before}")
        with ProgressLine(f"{self._stage}: {name}", tasks, done, self._clock, LOG_EVERY_S) as line:
            yield line
        took = self._clock() - started
        if took >= LOG_EVERY_S and not self._on_terminal:
            self.log(f"phase {name} done in {duration(took)}", always=True)

    def log(self, line: str, always: bool = False) -> None:
        """Write a line where one is due."""
        if always or self._clock() - self._logged >= LOG_EVERY_S:
            self._logged = self._clock()
            with suppress(OSError):
                print(f"{self._stage}: {line}", file=sys.stderr, flush=True)
