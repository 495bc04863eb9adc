"""What a person should look at now, the worst first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.base.tables import duration
from recipe.reading.events import faults, state_of
from recipe.run.heartbeats import Heartbeat

RECENT_S = 3600.0
OVERLOAD = 4.0  # busiest expert over the mean of its layer


@dataclass(frozen=True)
class Alarm:
    serious: bool
    message: str


def alarms(
    start: dict[str, Any], events: list[dict[str, Any]], last: dict[str, Any] | None, beats_age_s: dict[int, float],
    beats: dict[int, Heartbeat], now: float | None = None,
) -> list[Alarm]:  # fmt: skip
    """Alarms of a run.

    Args:
        start: the last entry of attempts.jsonl.
        last: the last line of metrics.jsonl.
        beats_age_s: seconds since each rank's heartbeat was written.
        beats: the ranks' heartbeats.
    """
    now = time.time() if now is None else now
    state, watch = state_of(events), start["run_config"]["watch"]
    raised = []
    if state.startswith("ended"):
        raised.append(Alarm(True, state))
    if state == "running":
        raised += _silence(watch, last, beats_age_s, beats, now)
    for fault in faults(events):
        if now - fault.last["time"] < RECENT_S and not (fault.kind == "attempt_ended" and state.startswith("ended")):
            times = f" ({fault.count:,} times)" if fault.count > 1 else ""
            ago = duration(now - fault.last["time"])
            raised.append(
                Alarm(
                    fault.serious,
                    f"{ago} ago, step {fault.last['step']:,}{times}: {fault.last.get('message', fault.kind)}",
                )
            )
    if last is not None:
        if last["expert_load_max_over_mean"] > OVERLOAD:
            raised.append(
                Alarm(False, f"an expert has {last['expert_load_max_over_mean']:.1f} times the mean load of its layer")
            )
        dead = sum(last["routing"].get("dead_experts", []))
        if dead:
            raised.append(Alarm(False, f"{dead:.0f} experts got no token in step {last['step']:,}"))
    return sorted(raised, key=lambda alarm: not alarm.serious)


def _silence(
    watch: dict[str, Any], last: dict[str, Any] | None, ages: dict[int, float], beats: dict[int, Heartbeat], now: float
) -> list[Alarm]:
    patience = 3 * watch["heartbeat_s"]
    silent = sorted(rank for rank, age in ages.items() if age > patience)
    raised = []
    if silent:
        ranks = ", ".join(f"rank {rank} on {beats[rank].where} ({beats[rank].phase})" for rank in silent[:4])
        more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
        raised.append(Alarm(True, f"no heartbeat for {duration(max(ages[rank] for rank in silent))}: {ranks}{more}"))
    if last is not None and now - last["time"] > watch["no_progress_s"]:
        raised.append(Alarm(True, f"no logged step for {duration(now - last['time'])}, the last was {last['step']:,}"))
    return raised


def heartbeat_ages(folder: Path, beats: dict[int, Heartbeat]) -> dict[int, float]:
    """Seconds since each rank's heartbeat file was written; preflight sees to it that clocks agree."""
    now = time.time()
    return {rank: max(0.0, now - (folder / f"rank_{rank:05d}.json").stat().st_mtime) for rank in beats}
