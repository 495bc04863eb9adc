"""What the planner had expected of a run, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.base.errors import UserError
from recipe.base.hardware import GPUS_PER_NODE, accelerator_of, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.strict import strict_model
from recipe.base.tables import duration, ratio
from recipe.planner.plan import Plan
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC
from recipe.planner.workload import Workload, facts_of
from recipe.reading.history import History, median
from recipe.reading.phases import phase_now, phase_used
from recipe.run.records import ds_config_used

CPU = "cpu"  # what the event of a start calls the device of CPU ranks


@dataclass(frozen=True)
class Row:
    """A quantity as texts: what was expected, from what to what, and what was measured."""

    name: str
    planned: str
    range: str
    measured: str
    ratio: str


def planned_and_measured(
    starts: list[dict[str, Any]], events: list[dict[str, Any]], history: History, interconnect: str | None
) -> tuple[list[Row], str]:
    """Rows, and why there are none, if so; neither on CPU, whose times and memory the planner does not model.

    Measured are medians of the steps that were logged with the ranks and device of the last start.
    """
    devices = [e["device"] for e in events if e["event"] == "started" and "device" in e]
    if not devices or devices[-1] == CPU:
        return [], ""
    accelerator = accelerator_of(devices[-1])
    if accelerator is None:
        return [], f"the planner has no figures of {devices[-1]}"
    number, begun = phase_now(events)
    shape = shape_of(starts[-1]) or load_model_shape(starts[-1]["run_config"]["model"])
    phase = phase_used(starts[-1], shape, number)
    run, ds = phase.run, phase.ds
    if ds.world_size > GPUS_PER_NODE and ds.world_size % GPUS_PER_NODE:
        return [], f"{ds.world_size} ranks do not fill nodes of {GPUS_PER_NODE} GPUs"
    plan = Plan(Workload(phase.shape, cluster_of(accelerator.name, ds.world_size, interconnect), ds, facts_of(run)))
    return _rows(plan, _since(history, max(begun, _same_setup_since(starts))), run.schedule.total_tokens), ""


def shape_of(start: dict[str, Any]) -> ModelShape | None:
    """The shape of the model that a start trained; None where it is neither recorded nor on this machine any more."""
    try:
        if "identity" in start:
            return strict_model(ModelShape, start["identity"]["model"], "model")
        return load_model_shape(start["run_config"]["model"])
    except (UserError, OSError):
        return None


def _rows(plan: Plan, measured: dict[str, np.ndarray], total_tokens: float) -> list[Row]:
    tokens_per_step = plan.work.tokens_per_step
    step_s, tokens_per_s = median(measured["step_time_s"]), median(measured["tokens_per_s"])
    left = max(0.0, total_tokens - float(measured["tokens"][-1])) if len(measured["tokens"]) else total_tokens
    expected, low, high = (plan.time(assumed).step_s for assumed in (EXPECTED, OPTIMISTIC, CONSERVATIVE))
    peak = float(np.nanmax(measured["memory_gib"], initial=0.0))
    mfu, mfu_low, mfu_high = (100 * plan.mfu(assumed) for assumed in (EXPECTED, OPTIMISTIC, CONSERVATIVE))
    rows = [
        _row("step time, s", expected, low, high, step_s),
        _row("tokens/s", tokens_per_step / expected, tokens_per_step / low, tokens_per_step / high, tokens_per_s),
        _row("MFU, %", mfu, mfu_low, mfu_high, 100 * median(measured["mfu"])),
        Row("memory of rank 0 at its peak, GiB", _number(plan.memory.peak_gib), "", _number(peak), f"{ratio(peak, plan.memory.peak_gib):.2f}")
        if peak else None,
    ]  # fmt: skip
    if left:
        days = [duration(left / tokens_per_step * s) for s in (expected, low, high)]
        now = ratio(left, tokens_per_s)
        over = ratio(now, left / tokens_per_step * expected)
        rows.append(
            Row("time left for the planned tokens", days[0], f"{days[1]} to {days[2]}", duration(now), f"{over:.2f}")
        )
    return [row for row in rows if row is not None]


def _row(name: str, expected: float, low: float, high: float, measured: float) -> Row | None:
    """A row; None where nothing was measured."""
    if not np.isfinite(measured):
        return None
    return Row(name, _number(expected), f"{_number(low)} to {_number(high)}", _number(measured), f"{ratio(measured, expected):.2f}")  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"


def _same_setup_since(starts: list[dict[str, Any]]) -> float:
    """When the first of the last starts with one ds_config, the same phases and one budget of kept results began."""
    since = starts[-1]
    for start in reversed(starts):
        if _setup(start) != _setup(since):
            break
        since = start
    return float(since["time"])


def _setup(start: dict[str, Any]) -> tuple[Any, ...]:
    return ds_config_used(start), start.get("run_config", {}).get("phases") or [], start.get("kept_in_phases")


def _since(history: History, time: float) -> dict[str, np.ndarray]:
    names = ("step_time_s", "tokens_per_s", "mfu", "memory_gib", "tokens")
    return {name: history[name][history["time"] >= time] for name in names}
