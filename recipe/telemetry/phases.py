"""Where the time of a step goes: data, forward, backward, update, checkpoint, evaluation.

On a GPU an event is put into the stream where a phase begins, and read when a step is logged, so nothing waits for it:
a phase's time is the GPU's, and `reading` is the time that it had nothing to do. On CPU it is the time that passes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch

from recipe.base.tables import ratio

# What the loop enters -> what is reported; several may be one.
NAMES = {
    "reading": "data_wait",
    "counting": "forward",
    "forward": "forward",
    "backward": "backward",
    "update": "optimizer",
    "committing": "checkpoint",
    "saving": "checkpoint",
    "evaluating": "evaluation",
    "between steps": "other",
}


class PhaseClock:
    """Adds up the time of each phase between two readings."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._marks: list[tuple[str, Any]] = []
        self.enter("between steps")

    def enter(self, phase: str) -> None:
        """`phase` begins, and the one before it ends."""
        name = NAMES[phase]
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def take(self, steps: int) -> dict[str, float]:
        """Seconds of each phase in a mean step since the last reading."""
        current = self._marks[-1][0]
        self.enter("between steps")
        if self._cuda:
            self._marks[-1][1].synchronize()
        total: dict[str, float] = defaultdict(float)
        for (name, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            total[name] += begun.elapsed_time(ended) / 1000 if self._cuda else ended - begun
        self._marks = [(current, self._marks[-1][1])]
        return {name: ratio(seconds, steps) for name, seconds in total.items()}
