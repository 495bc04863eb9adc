"""What the planner had expected of a run, beside what was measured."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from recipe.base.ds_config import DsConfig
from recipe.base.hardware import GPUS_PER_NODE, accelerator_of, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.strict import strict_model
from recipe.planner.plan import Plan
from recipe.planner.workload import Workload, facts_of
from recipe.reading.history import History
from recipe.run.records import recorded_run_config


def planned_and_measured(
    start: dict[str, Any], events: list[dict[str, Any]], history: History, interconnect: str | None
) -> tuple[list[tuple[str, str, str, str]], str]:
    """Rows of what, planned, measured, measured over planned; and why there are none, if so.

    Measured are medians of the logged steps, of the last start's ranks and device.
    """
    devices = [e["device"] for e in events if e["event"] == "started" and "device" in e]
    accelerator = accelerator_of(devices[-1]) if devices else None
    if accelerator is None:
        return [], f"the planner knows no {devices[-1] if devices else 'device of this run'}"
    run = recorded_run_config(start)
    ds = strict_model(DsConfig, start["ds_config"], "ds_config")
    if ds.world_size > GPUS_PER_NODE and ds.world_size % GPUS_PER_NODE:
        return [], f"{ds.world_size} ranks do not fill nodes of {GPUS_PER_NODE}"
    cluster = cluster_of(accelerator.name, ds.world_size, interconnect)
    shape = (
        strict_model(ModelShape, start["identity"]["model"], "model")
        if "identity" in start
        else load_model_shape(run.model)
    )
    plan = Plan(Workload(shape, cluster, ds, facts_of(run)))
    planned = {
        "step time, s": (plan.expected.step_s, _median(history["step_time_s"])),
        "tokens per s": (plan.work.tokens_per_step / plan.expected.step_s, _median(history["tokens_per_s"])),
        "memory of rank 0, GiB": (plan.memory.peak_gib, float(np.nanmax(history["memory_gib"], initial=0.0))),
    }
    rows = [(name, f"{a:,.4g}", f"{b:,.4g}", f"{b / a:.2f}") for name, (a, b) in planned.items() if np.isfinite(b)]
    return rows, ""


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return statistics.median(known.tolist()) if len(known) else float("nan")
