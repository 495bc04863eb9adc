"""What a run reports of itself may be lost, and ends nothing: a full disk is said once, and again when there is room."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    """Print a line; the console's own file can be on the disk that is full."""
    with suppress(OSError):
        print(text, flush=True)


class Reports:
    """Writes to a run's files. A failed one is told when it begins to fail, and when it works again."""

    def __init__(self, say: Callable[[str], None] = say):
        self.say = say
        self._failing: set[Path] = set()

    def write(self, path: Path, write: Callable[[], Any]) -> bool:
        """Whether it was written: to `path`, by `write`."""
        try:
            write()
        except OSError as error:
            if path not in self._failing:
                self._failing.add(path)
                why = os.strerror(error.errno) if error.errno else str(error)
                self.say(f"{path} cannot be written: {why}; training goes on without it, make room")
            return False
        if path in self._failing:
            self._failing.remove(path)
            self.say(f"{path} is written again; what it lacks is lost")
        return True
