"""Progress over the requests of tasks: first they are built, task by task, then scored together, the longest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from recipe.base.ranks import say
from recipe.evaluation.display import progress_line


class Requests:
    """Two lines of progress, one after the other; a context that takes away the line that is left."""

    def __init__(self, tasks: Sequence[Any]):
        self._tasks = tasks
        self._line = progress_line("tasks whose requests are built", len(tasks))
        self._scores = False
        for task in tasks:
            task.build_all_requests = partial(self._build, task.build_all_requests)

    def _build(self, build: Callable[..., None], **arguments: Any) -> None:
        build(**arguments)
        self._line.advance()

    def advance(self) -> None:
        """One more is scored; all are built before the first is."""
        if not self._scores:
            self._scores = True
            self._line.clear()
            total = sum(request.repeats for task in self._tasks for request in task.instances)
            say(f"scores {total:,} requests of {len(self._tasks)} tasks")
            self._line = progress_line("requests", total)
        self._line.advance()

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.clear()
