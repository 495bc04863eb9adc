"""What a report says first: held-out loss per source, and the facts of a run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.ds_config import DsConfig
from recipe.base.strict import strict_model
from recipe.base.tables import as_float, duration, ratio
from recipe.reading.charts import short
from recipe.reading.events import state_of
from recipe.reading.history import History, median
from recipe.reading.planned import CPU, shape_of
from recipe.run.records import HELD_OUT_RESULTS, read_evaluations, read_record

NEWEST = 50  # logged steps that the speed of now is the median of
STATES = {  # of recipe.reading.events.state_of -> words, style
    "starting": ("starting", "soft"),
    "running": ("running", ""),
    "finished": ("finished", ""),
    "stopped": ("stopped on request", ""),
}


@dataclass(frozen=True)
class HeldOut:
    """Held-out loss of each source, in bits per byte, at some steps."""

    steps: np.ndarray
    sources: dict[str, np.ndarray]  # NaN where an evaluation lacks the source
    during_training: bool

    @property
    def names(self) -> list[str]:
        return list(self.sources)


@dataclass(frozen=True)
class Fact:
    name: str
    value: str
    style: str = ""
    note: str = ""


def held_out(run_dir: Path, events: list[Any]) -> HeldOut | None:
    """The evaluations during training, else the result of recipe/evaluate_model.py after it; None without either.

    Those of steps that the run went back before do not count, whether it has done these steps again or not.
    """
    counted: list[dict[str, Any]] = []
    for evaluation in read_evaluations(run_dir):
        while counted and counted[-1]["step"] >= evaluation["step"]:
            counted.pop()
        counted.append(evaluation)
    starts = [event for event in events if event["event"] == "started"]
    counted = [e for e in counted if not any(s["time"] > e["time"] and s["step"] < e["step"] for s in starts)]
    later = read_record(run_dir / HELD_OUT_RESULTS) if not counted else None
    records = counted or ([later] if later is not None and later.get("sources") else [])
    if not records:
        return None
    names = dict.fromkeys(name for record in records for name in record["sources"])
    return HeldOut(
        np.array([as_float(record.get("step", math.nan)) for record in records]),
        {name: np.array([_bits(record, name) for record in records]) for name in sorted(names)},
        bool(counted),
    )


def _bits(record: dict[str, Any], source: str) -> float:
    return as_float(record["sources"].get(source, {}).get("bits_per_byte", math.nan))


def held_out_cards(results: HeldOut, styles: dict[str, str]) -> list[dict[str, str]]:
    """The newest result of each source, and how it changed."""
    return [
        {"name": name, "style": styles[name], "value": f"{_last(values):.3f}", "change": _change(results.steps, values)}
        for name, values in results.sources.items()
    ]


def _last(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan


def _change(steps: np.ndarray, values: np.ndarray) -> str:
    if np.isnan(values[-1]) and not np.isnan(values).all():
        return f"of step {steps[~np.isnan(values)][-1]:,.0f}, later evaluations lack it"
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return ""
    change = values[known[-1]] - values[known[0]]
    return f"{'−' if change < 0 else '+'}{abs(change):.3f} since step {steps[known[0]]:,.0f}"


def held_out_note(results: HeldOut) -> str:
    step = results.steps[-1]
    at = f", measured at step {step:,.0f}" if math.isfinite(step) else ""  # an exported folder has no step
    if at and not results.during_training:
        at = f", measured on the checkpoint of step {step:,.0f}"
    return f"Bits per byte of text that the model is not trained on{at}. Lower is better."


def facts(starts: list[Any], events: list[Any], history: History, spent: dict[str, float], now: float) -> list[Fact]:
    """The facts under the headline, in the order in which they are shown."""
    run, tokens = starts[-1]["run_config"], float(history["tokens"][-1])
    total = as_float(run["schedule"]["total_tokens"])
    rate = median(history["tokens_per_s"][-NEWEST:])
    state, last_update = state_of(events), _last_update(starts, events, history)
    known = [
        _state(state, now - last_update, run),
        _model(starts[-1]),
        Fact("tokens", f"{_count(tokens)} of {_count(total)}", note=f"{ratio(tokens, total):.1%} of the plan"),
        Fact("optimizer step", f"{history.steps[-1]:,.0f}"),
        _devices(starts[-1], events),
        _mfu(history),
        Fact("speed", f"{_count(rate)} tokens/s") if math.isfinite(rate) else None,
        Fact("training loss", f"{history['loss'][-1]:.3f}", note="nats per token"),
        Fact("began", _date(starts[0]["time"]), note="UTC"),
        Fact("last update" if state in ("running", "starting") else "ended", _date(last_update), note="UTC"),
        Fact("duration", duration(last_update - starts[0]["time"]), note=_starts(len(starts))),
        _left(tokens, total, rate, state),
        _goodput(spent),
    ]
    return [fact for fact in known if fact is not None]


def why_ended(events: list[Any]) -> str:
    """The message of a run that a fault ended; empty for others."""
    state = state_of(events)
    return state.removeprefix("ended: ") if state not in STATES else ""


def _state(state: str, silent_s: float, run: dict[str, Any]) -> Fact:
    words, style = STATES.get(state, ("interrupted", "bad"))
    if state != "running":
        return Fact("state", words, style)
    limit = as_float(run.get("watch", {}).get("no_progress_s", math.inf))
    return Fact("state", words, "warn" if silent_s > limit else "", f"last update {duration(max(silent_s, 0.0))} ago")


def _model(start: dict[str, Any]) -> Fact | None:
    shape = shape_of(start)
    if shape is None:
        return None
    total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
    return Fact("parameters", _count(total), note=f"{_count(active)} active per token")


def _devices(start: dict[str, Any], events: list[Any]) -> Fact | None:
    began = [e for e in events if e["event"] == "started" and "device" in e]
    if not began:
        return None
    device, ranks = str(began[-1]["device"]), began[-1].get("ranks") or _world_size(start)
    kind = "CPU rank" if device == CPU else "GPU"
    return Fact("devices", f"{ranks:,} {kind}{'s' if ranks != 1 else ''}", note="" if device == CPU else device)


def _world_size(start: dict[str, Any]) -> int:
    """For events of older versions, which do not tell it."""
    return strict_model(DsConfig, start["ds_config"], "ds_config").world_size


def _mfu(history: History) -> Fact | None:
    mfu = median(history["mfu"][-NEWEST:])
    return Fact("MFU", f"{mfu:.1%}", note="of the bf16 peak") if math.isfinite(mfu) else None


def _starts(count: int) -> str:
    return "1 start" if count == 1 else f"{count:,} starts"


def _left(tokens: float, total: float, rate: float, state: str) -> Fact | None:
    if state != "running" or tokens >= total or not rate > 0:
        return None
    return Fact("time left", duration((total - tokens) / rate), note="at this speed")


def _goodput(spent: dict[str, float]) -> Fact | None:
    whole = sum(spent.values())
    return Fact("goodput", f"{spent['training'] / whole:.1%}", note="of the time was training") if whole else None


def _last_update(starts: list[Any], events: list[Any], history: History) -> float:
    times = [starts[-1]["time"], *(event["time"] for event in events[-1:]), history["time"][-1]]
    return max(as_float(value) for value in times if value == value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _count(value: float) -> str:
    """Three digits: 30.2B, 614k, 2,048."""
    return short(value, 3) if value >= 1e4 or not math.isfinite(value) else f"{value:,.0f}"
