"""A run's metrics as columns, small enough to draw however long the run is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.tables import as_float
from recipe.run.records import iterate_metrics

SCALARS = (
    "time",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "step_time_s",
    "mfu",
    "memory_gib",
    "expert_load_max_over_mean",
)
DRAWABLE = 1e200  # beyond it sums and differences overflow
MAPPINGS = ("phase_s", "step_time_percentiles_s", "comm_waited_s", "source_tokens", "source_epochs")


@dataclass
class History:
    """Columns by name, all as long as `steps`, NaN where a step has no such metric; mappings as `phase_s/forward`."""

    steps: np.ndarray
    columns: dict[str, np.ndarray]
    layer_loads_TL: np.ndarray  # busiest expert over the mean, by logged step and MoE layer
    lost: list[dict[str, np.ndarray]] = field(
        default_factory=list
    )  # stretches done again after a resume: steps, loss, time

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns.get(name, np.full(len(self.steps), np.nan))

    def under(self, mapping: str) -> dict[str, np.ndarray]:
        """The columns of a mapping by their own names."""
        prefix = mapping + "/"
        return {name.removeprefix(prefix): values for name, values in self.columns.items() if name.startswith(prefix)}


def read_history(run_dir: str | Path) -> History:
    return history_of(iterate_metrics(run_dir))


def history_of(lines: Iterable[dict[str, Any]]) -> History:
    """Columns of the steps that count: of a step that was done again, the last time."""
    rows: list[dict[str, float]] = []
    loads: list[list[float]] = []
    lost = []
    for line in lines:
        if rows and line["step"] <= rows[-1]["step"]:
            first = next(number for number, row in enumerate(rows) if row["step"] >= line["step"])
            lost.append(_stretch(rows[first:]))
            del rows[first:], loads[first:]
        rows.append(_flat(line))
        loads.append(line["routing"]["load_max_over_mean"])
    names = sorted({name for row in rows for name in row} - {"step"})
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    return History(np.array([row["step"] for row in rows]), columns, np.array(loads), lost)


def _flat(line: dict[str, Any]) -> dict[str, float]:
    row = {"step": line["step"], **{name: as_float(line[name]) for name in SCALARS if name in line}}
    for mapping in MAPPINGS:
        row |= {f"{mapping}/{name}": as_float(value) for name, value in line.get(mapping, {}).items()}
    return row


def _stretch(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in ("step", "loss", "time")}


def median(values: np.ndarray) -> float:
    """Of the finite values; NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def bucketed(x: np.ndarray, y: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most so many points of a curve, evenly spread over x: mean x, and mean, least and most of y.

    NaN and what is beyond DRAWABLE are left out.
    """
    known = np.abs(y) < DRAWABLE
    x, y = x[known], y[known]
    if len(x) == 0:
        return x, y, y, y
    number = np.minimum(((x - x[0]) * buckets // max(x[-1] - x[0], 1)).astype(int), buckets - 1)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    counts = np.diff(np.append(starts, len(x)))
    return (
        np.add.reduceat(x, starts) / counts,
        np.add.reduceat(y, starts) / counts,
        np.minimum.reduceat(y, starts),
        np.maximum.reduceat(y, starts),
    )
