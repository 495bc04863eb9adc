"""Markdown tables, progress, and numbers as people read them: whatever a run measures, it can be printed."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first `left` columns are aligned left and the others right."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def aligned_rows(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Lines for a terminal: the columns of these numbers are aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def rounded_count(number: float) -> str:
    """Such as 1.5T, 32B, 8.39M."""
    for unit, unit_size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * unit_size:  # 999.9B is 1T
            return f"{number / unit_size:.3g}{unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Such as 12d 03h, 3h 07m, 4m 05s, 7.5 s; `inf` and `nan` as they are, and the like of 1e+300d."""
    seconds = as_float(seconds)
    if not math.isfinite(seconds):
        return f"{seconds}"
    if seconds >= 1e15:
        return f"{seconds / 86400:.0e}d"
    minutes = int(seconds / 60)
    if minutes >= 24 * 60:
        return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {int(seconds % 60):02d}s" if minutes else f"{seconds:.1f} s"


def size(number: float) -> str:
    """Bytes in decimal units, such as 4.4 kB and 1.8 MB: a kB is 1,000 bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(number, 1) < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def ratio(value: float, over: float) -> float:
    """value / over, and where that is undefined or too large what IEEE 754 says: nan or infinity."""
    value, over = as_float(value), as_float(over)
    if over == 0:
        return math.nan if value == 0 or math.isnan(value) else math.copysign(math.inf, value)
    return value / over


def exponential(value: float) -> float:
    """e to the power of `value`; infinity where that is too large."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def as_float(value: float) -> float:
    """Of a whole number of any size: infinity beyond what a float holds."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class ProgressLine:
    """How far something is, on a line of a terminal's stderr that is written over; in a log nothing, or a line at a rhythm.

    It has no thread and leaves the cursor alone, so that a process may fork, or end at once, while it is shown.

    Args:
        done: of `total`, before this start.
        log_every_s: where stderr is no terminal, a line is written so often; by default never.
        shown: whether there is a line at all; not on the ranks that have nothing to say.
    """

    SHOWN_EVERY_S = 0.1

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        log_every_s: float = math.inf,
        shown: bool = True,
    ):
        self._title, self._total, self._done, self._first, self._clock = title, total, done, done, clock
        self._started = self._shown = clock()
        self._on_terminal = shown and sys.stderr.isatty()
        self._every_s = self.SHOWN_EVERY_S if self._on_terminal else log_every_s if shown else math.inf
        if self._on_terminal:
            self.show()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._clock() - self._shown >= self._every_s:
            self._show()

    def show(self) -> None:
        """Bring the terminal's line back."""
        if self._on_terminal:
            self._show()

    def _show(self) -> None:
        self._shown = self._clock()
        advanced, left = self._done - self._first, ""
        if advanced:
            left = f", {duration((self._total - self._done) * (self._shown - self._started) / advanced)} left"
        share = f"{self._done / self._total:4.0%}" if self._total else ""
        text = f"{self._title} {self._done:,}/{self._total:,} {share}{left}"
        if self._on_terminal:
            self._write(text)
        else:
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a line of something else; `show` brings it back."""
        self._write("")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _write(self, text: str) -> None:
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap and stay
            with suppress(OSError):
                print(f"\r{text[:width]}\x1b[K", end="", file=sys.stderr, flush=True)


class StageLines:
    """How long each stage of a start takes: a line when it ends, with its seconds and what comes next.

    Args:
        say: prints a line; nothing on the ranks that have nothing to say.
        clock: in seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._say, self._clock, self._began = say, clock, clock()

    def done(self, what: str, following: str = "") -> None:
        """A stage has ended.

        Args:
            what: it has done.
            following: the stage that begins now, for whoever waits for it.
        """
        now = self._clock()
        then = f"; next: {following}" if following else ""
        self._say(f"start {now - self._began:>7.1f} s  {what}{then}")
        self._began = now
