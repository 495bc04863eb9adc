"""Experiment trackers (`logging.trackers`), each behind a thread of its own: none ends a run or holds up a step."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from recipe.telemetry.sinks import Sink

MOST_TRIES = 5  # for the same step, then it is lost: something in it may be what the tracker refuses
LONGEST_RETRY_S = 600.0


class Client(Protocol):
    """A tracker's own client with the tracker's run open. Its methods may raise anything, and may wait."""

    where: str  # the numbers go, and how to see them there

    def log(self, tags: dict[str, float], step: int, logged_at: float) -> None:
        """The values of a step; `logged_at` is in seconds since 1970."""

    def finish(self, ended: str | None) -> None:
        """Close the tracker's run: `finished`, `stopped`, or None where the attempt broke off."""


@dataclass
class _Entry:
    tags: dict[str, float]
    step: int
    logged_at: float = field(default_factory=time.time)
    tries: int = 0


class Tracker(Sink):
    """Hands numbers to a client in a thread. What fails is told once, and tried again later.

    Args:
        name: as in `logging.trackers`.
        open_client: called in the thread, again after each failure.
    """

    MOST_PENDING = 1000  # logged steps and evaluations that wait; beyond them the oldest are lost
    RETRY_S = 30.0  # from a failure to the next try; twice as long after each
    CLOSE_S = 20.0  # that the end of a run waits for a tracker

    def __init__(self, name: str, open_client: Callable[[], Client]):
        self._name, self._open_client = name, open_client
        self._changed = threading.Condition()  # guards all below
        self._pending: deque[_Entry] = deque()
        self._events: list[dict[str, Any]] = []
        self._lost, self._failing, self._closing, self._where = 0, False, False, ""
        self._ended: str | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def numbers(self, tags: dict[str, float], step: int) -> None:
        with self._changed:
            if len(self._pending) >= self.MOST_PENDING:
                self._pending.popleft()
                self._lost += 1
            self._pending.append(_Entry(dict(tags), step))
            self._changed.notify()

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] in ("finished", "stopped"):
            with self._changed:
                self._ended = event["event"]

    def take_events(self) -> list[dict[str, Any]]:
        with self._changed:
            events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Waits for what is pending, but not for long: a server that is away does not hold up the end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self.CLOSE_S)
        with self._changed:
            left = len(self._pending) + self._lost
            if self._thread.is_alive():
                self._tell(f"it did not end within {self.CLOSE_S:g} s; what it has not sent is in metrics.jsonl")
            elif left:
                self._tell(f"{left:,} logged steps or evaluations did not reach it; they are in metrics.jsonl")

    def _work(self) -> None:
        client, wait_s = None, self.RETRY_S
        while (entry := self._next()) is not None:
            try:
                if client is None:
                    client = self._open_client()
                    self._opened(client)
                client.log(entry.tags, entry.step, entry.logged_at)
            except BaseException as error:  # libraries also raise SystemExit; none may end this thread
                client = None
                self._failed(entry, error)
                if self._closes_within(wait_s):
                    return
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            else:
                wait_s = self.RETRY_S
                self._succeeded()
        if client is not None:
            self._finish(client)

    def _next(self) -> _Entry | None:
        """The oldest entry that waits; None where the run has ended and there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            return self._pending.popleft() if self._pending else None

    def _opened(self, client: Client) -> None:
        if client.where != self._where:  # else it is the same again, after a failure
            self._where = client.where
            with self._changed:
                self._tell(client.where)

    def _failed(self, entry: _Entry, error: BaseException) -> None:
        entry.tries += 1
        with self._changed:
            if entry.tries >= MOST_TRIES or len(self._pending) >= self.MOST_PENDING:
                self._lost += 1
            else:
                self._pending.appendleft(entry)
            if not self._failing:
                self._failing = True
                self._tell(f"{_in_a_line(error)}; training goes on, and what is logged waits for it")

    def _succeeded(self) -> None:
        with self._changed:
            if self._failing or self._lost:  # lost without a failure: it was slow
                lost = f"; {self._lost:,} logged steps or evaluations are lost to it" if self._lost else ""
                self._tell(f"it works again{lost}")
            self._failing, self._lost = False, 0

    def _closes_within(self, seconds: float) -> bool:
        """Wait, unless the run ends."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _finish(self, client: Client) -> None:
        try:
            client.finish(self._ended)
        except BaseException as error:
            with self._changed:
                self._tell(f"{_in_a_line(error)} at the end")

    def _tell(self, message: str) -> None:
        message = f"tracker {self._name}: {_without_passwords(message)}"
        self._events.append({"event": "tracker", "tracker": self._name, "message": message})


def _without_passwords(text: str) -> str:
    """Users put names and passwords before the host of an address, and clients repeat it in their errors."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _in_a_line(error: BaseException, most: int = 300) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:most]
