"""What a run reports of itself ends nothing: a full disk is said once, and what could not be written waits for room."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipe.run.records import append_record

# records of a file that wait for room: a day of steps of 10 s
WAITING = 10_000


def say(text: str) -> None:
    """Print a line; the console's own file can be on the disk that is full."""
    with suppress(OSError):
        print(text, flush=True)


class Reports:
    """Writes to a run's files. A failed one is told when it begins to fail, and when it works again."""

    def __init__(self, say: Callable[[str], None] = say):
        self.say = say
        self._failing: set[Path] = set()
        self._waiting: dict[Path, deque[dict[str, Any]]] = {}

    def append(self, path: Path, record: dict[str, Any]) -> None:
        """Append a record to a file of JSON lines, after those that found no room; the last 10,000 of them are kept."""
        waiting = self._waiting.setdefault(path, deque(maxlen=WAITING))
        waiting.append(record)

        def append_all() -> None:
            while waiting:
                append_record(path, waiting[0])
                waiting.popleft()

        self.write(path, append_all)

    def write(self, path: Path, write: Callable[[], Any]) -> bool:
        """Whether it was written: to `path`, by `write`."""
        try:
            write()
        except OSError as error:
            if path not in self._failing:
                self._failing.add(path)
                why = os.strerror(error.errno) if error.errno else str(error)
                self.say(f"{path} cannot be written: {why}; make room; training goes on and writes it later")
            return False
        if path in self._failing:
            self._failing.remove(path)
            self.say(f"{path} is written again")
        return True
