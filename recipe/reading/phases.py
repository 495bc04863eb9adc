"""The phase that a run is in, by its records: for those who tell of a run and do not train it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipe.base.ds_config import DsConfig
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.resolved import ResolvedPhase, resolve_phases
from recipe.base.strict import strict_model
from recipe.run.records import recorded_run_config, with_kept_gib


def phase_now(events: list[dict[str, Any]]) -> tuple[int, float]:
    """The number of the phase that a run trains in, and when it began; 0.0 where the run has told of none."""
    known = [event for event in events if event["event"] in ("started", "phase") and "phase" in event]
    number = int(known[-1]["phase"]) if known else 0
    return number, max((e["time"] for e in known if e["event"] == "phase" and e["phase"] == number), default=0.0)


def phase_used(start: dict[str, Any], shape: ModelShape, number: int) -> ResolvedPhase:
    """A phase as a start trains it, with the budget for kept results that it has.

    Args:
        shape: of the model that was trained.
    """
    raw = start["ds_config"]
    ds = strict_model(DsConfig, raw, "ds_config")
    phases = resolve_phases(recorded_run_config(start), shape, ds, raw, path="the recorded run config")
    phase = phases[min(number, len(phases) - 1)]
    if (budget := _budget(start, phase.number)) is None:
        return phase
    own = strict_model(DsConfig, with_kept_gib(phase.ds_raw, budget), "ds_config")
    return replace(phase, ds=own)


def _budget(start: dict[str, Any], number: int) -> float | None:
    in_phases = start.get("kept_in_phases", [start["kept"]] if "kept" in start else [])
    return float(in_phases[number]["budget_gib"]) if number < len(in_phases) else None
