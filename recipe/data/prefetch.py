"""What the next step reads is read while this one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Read = TypeVar("Read")


class Prefetcher(Generic[Read]):
    """Results of `read(position)`, a pure function of a position, each read in a thread before it is asked for.

    An error of `read` is raised where its result is taken; one that nobody takes is nobody's.
    """

    def __init__(self, read: Callable[[int], Read]):
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[int, Future[Read]] | None = None

    def take(self, position: int, following: int) -> Read:
        """What is at `position`; what is at `following` is read from now on."""
        future = self._ahead[1] if self._ahead is not None and self._ahead[0] == position else self._start(position)
        found = future.result()
        self._ahead = following, self._start(following)
        return found

    def _start(self, position: int) -> Future[Read]:
        return self._thread.submit(self._read, position)
