"""Reading what a run writes about itself: metrics.jsonl, events.jsonl, attempts.jsonl. No torch: it is read while runs run.

metrics.jsonl has one JSON object per logged step, events.jsonl one per event, both with `time` in seconds of the epoch. They are
only ever appended to: after a resume the steps that were lost appear again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError
from recipe.base.files import parsed_lines, read_json_lines

TAIL_BYTES = 8 << 20  # of metrics.jsonl, more than one line of it


def iterate_metrics(run_dir: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl as they were written, lost steps included; those that a kill or a full disk has cut are not."""
    with open(Path(run_dir) / "metrics.jsonl", "rb") as handle:
        yield from parsed_lines(handle)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The logged steps of a run in order, without those that a later start has gone back before."""
    rows: list[dict[str, Any]] = []
    for values in iterate_metrics(run_dir):
        while rows and rows[-1]["step"] >= values["step"]:
            rows.pop()
        rows.append(values)
    return rows


def last_metrics(run_dir: str | Path) -> dict[str, Any] | None:
    """The last whole line, without reading a file of weeks; None if there is none yet."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return None
    with open(path, "rb") as handle:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        handle.seek(start)
        lines = handle.read().splitlines(keepends=True)
    whole = lines[1:] if start else lines  # of the first there is only an end
    return next((values for line in reversed(whole) for values in parsed_lines([line])), None)


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """What happened, oldest first."""
    return read_json_lines(Path(run_dir) / "events.jsonl")


def saved_checkpoints(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of the checkpoints that a run has saved since it began, oldest first."""
    saved: list[dict[str, Any]] = []
    for event in read_events(run_dir):
        if event["event"] in ("checkpoint", "imported", "branched"):
            saved.append(event)
        elif event["event"] == "started" and event["checkpoint"] is None:
            saved = []  # a rewind before the first checkpoint
    return saved


def read_starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """Each start of a run: time, command, versions, run_config, ds_config.

    Raises:
        UserError: not a run folder.
    """
    path = Path(run_dir) / "attempts.jsonl"
    starts = read_json_lines(path)
    if not starts:
        raise UserError(f"{run_dir} holds no run (no {path.name}); give the run_dir of a training run")
    return starts
