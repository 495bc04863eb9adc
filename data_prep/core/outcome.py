"""What a task on another machine came to, as plain values: an error would lose its type on the way."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from typing import Any

from recipe.base.errors import UserError, what_to_do

Function = Callable[[Any, int], dict[str, Any]]


def outcome_of(function: Function, task: Any, number: int) -> tuple[str, Any]:
    """A result, the sentence of an error that the user can act on, or the traceback of a defect of ours."""
    try:
        return "result", function(task, number)
    except Exception as error:
        message = what_to_do(error)
        if message is not None:
            return "error", message
        return "defect", f"task {number} failed on {socket.gethostname()}:\n{traceback.format_exc()}"


def result_of(outcome: tuple[str, Any]) -> Any:
    """The result.

    Raises:
        UserError: the task's, with its sentence.
        RuntimeError: the task failed by a defect of ours; its traceback is in the message.
    """
    kind, value = outcome
    if kind == "error":
        raise UserError(value)
    if kind == "defect":
        raise RuntimeError(value)
    return value
