"""Where a run's numbers go besides its own files: what TensorBoard, Prometheus and the trackers have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipe.base.tables import as_float
from recipe.run.reports import Reports
from recipe.telemetry.board import Board


class Sink:
    """Takes what a run reports, on rank 0. No method raises, and none waits for a network."""

    def numbers(self, tags: dict[str, float], step: int) -> None:
        """The values of a step, or of an evaluation after it, by tag."""

    def image(self, tag: str, image_HW: torch.Tensor, step: int) -> None:
        """A grey image, 0 black to 1 white."""

    def event(self, event: dict[str, Any]) -> None:
        """What happened: its step, its kind as `event`, and its `message`."""

    def take_events(self) -> list[dict[str, Any]]:
        """What happened to the sink itself since the last call: `event`, `message` and more, without a step."""
        return []

    def close(self) -> None:
        """Once, at the end; what was taken is handed on before."""


class TensorBoard(Sink):
    """The event file of a run folder.

    Args:
        first_step: TensorBoard then hides what an earlier attempt logged from this step on.
        layout: of its page "Custom Scalars".
    """

    def __init__(self, folder: Path, reports: Reports, first_step: int, layout: dict[str, Any]):
        self._folder, self._reports = folder, reports
        self._board = Board(folder, purge_step=first_step)
        self._board.add_custom_scalars(layout)

    def numbers(self, tags: dict[str, float], step: int) -> None:
        for tag, value in tags.items():
            self._board.add_scalar(tag, as_fp32(value), step)
        self._flush()

    def image(self, tag: str, image_HW: torch.Tensor, step: int) -> None:
        self._board.add_image(tag, image_HW, step, dataformats="HW")

    def event(self, event: dict[str, Any]) -> None:
        self._board.add_text("events", event["message"], event["step"])
        self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self._reports.write(self._folder, self._board.flush)


def as_fp32(value: float) -> float:
    """What TensorBoard's event file holds of a number."""
    with np.errstate(over="ignore"):
        return float(np.float32(as_float(value)))
