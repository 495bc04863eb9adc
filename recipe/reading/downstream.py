"""Downstream tasks over a run: the newest scores, how they move, and how much of a step's difference is noise.

Letters in shapes: E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.tables import as_float, ratio
from recipe.run.records import read_downstream

WINDOW = 10  # newest evaluations that noise is estimated from
LEAST = 5  # evaluations; of fewer, a spread about a line says nothing


@dataclass(frozen=True)
class Series:
    """One metric of one task, at the steps where it was evaluated."""

    steps_E: np.ndarray
    values_E: np.ndarray


@dataclass(frozen=True)
class Noise:
    """What arXiv 2508.13144 measures of a benchmark, as far as one run shows it.

    The paper's noise is the standard deviation of the scores of a run's last checkpoints, and its signal the spread of final
    scores between models. One run has no other models: the signal here is how far the score has moved over the window.

    Args:
        noise: standard deviation about a straight line through the newest evaluations, so that learning is not counted.
        signal: what the line rises or falls over these evaluations.
    """

    noise: float
    signal: float

    @property
    def signal_to_noise(self) -> float:
        return ratio(abs(self.signal), self.noise)


def counted_downstream(run_dir: Path, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a run in order, without those of steps that it went back before."""
    counted: list[dict[str, Any]] = []
    for evaluation in read_downstream(run_dir):
        while counted and counted[-1]["step"] >= evaluation["step"]:
            counted.pop()
        counted.append(evaluation)
    starts = [event for event in events if event["event"] == "started"]
    return [e for e in counted if not any(s["time"] > e["time"] and s["step"] < e["step"] for s in starts)]


def series_of(evaluations: Sequence[Mapping[str, Any]], task: str, metric: str) -> Series:
    """The values of a metric; evaluations that lack it, or whose step is no number, are left out."""
    scores = [(e["step"], e["tasks"].get(task, {}).get(metric)) for e in evaluations if isinstance(e["step"], int)]
    known = [(float(step), as_float(score["value"])) for step, score in scores if score is not None]
    steps_E, values_E = np.array(known).reshape(-1, 2).T
    return Series(steps_E, values_E)


def noise_of(series: Series) -> Noise | None:
    """Of the newest evaluations; None where they are too few."""
    x_E, y_E = series.steps_E[-WINDOW:], series.values_E[-WINDOW:]
    if len(x_E) < LEAST or not np.isfinite(y_E).all():
        return None
    x_E = (x_E - x_E[0]) / (x_E[-1] - x_E[0])
    slope, start = np.polyfit(x_E, y_E, 1)
    left_E = y_E - (slope * x_E + start)
    return Noise(math.sqrt(float((left_E**2).sum()) / (len(x_E) - 2)), float(slope))


def score_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The newest scores for the report's table, with noise and signal."""
    if not evaluations:
        return []
    newest = evaluations[-1]
    return [
        {
            "task": task,
            "metric": metric,
            "score": as_float(score["value"]),
            "stderr": _shown(score["stderr"]),
            "step": newest["step"],
            **_noise_cells(noise_of(series_of(evaluations, task, metric))),
        }
        for task, metrics in newest["tasks"].items()
        for metric, score in metrics.items()
    ]


def gap_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gaps between languages of one evaluation for the report's table."""
    return [
        {
            "gap": name,
            "metric": metric,
            "value": as_float(score["value"]),
            "stderr": _shown(score["stderr"]),
            "paired": f"{gap['paired']:,}" if gap["paired"] else "no",
        }
        for name, gap in results.get("gaps", {}).items()
        for metric, score in gap["metrics"].items()
    ]


def _noise_cells(noise: Noise | None) -> dict[str, str]:
    if noise is None:
        return {"noise": "", "signal_to_noise": ""}
    return {"noise": f"{noise.noise:.4f}", "signal_to_noise": f"{noise.signal_to_noise:.1f}"}


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.4f}"
