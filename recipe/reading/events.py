"""What happened in a run, for people: which events are faults, and which follow each other as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Ordinary in the life of a run.
ORDINARY = {"started", "finished", "checkpoint", "checkpoint_removed", "stopped", "ended"}
SERIOUS = {"attempt_ended", "rewind", "checkpoint_damaged", "checkpoint_failed", "data_skipped", "corruption"}


@dataclass(frozen=True)
class Happened:
    """Events of one kind in a row, as one."""

    kind: str
    first: dict[str, Any]
    last: dict[str, Any]
    count: int

    @property
    def serious(self) -> bool:
        """A fault; what is not is a warning."""
        return self.kind in SERIOUS


def faults(events: list[dict[str, Any]]) -> list[Happened]:
    """All that is not ordinary, oldest first; a kind that repeats without another in between is one."""
    groups: list[Happened] = []
    for event in events:
        kind = event["event"]
        asked = kind == "attempt_ended" and event["kind"] == "stopped" and event["code"] == 0
        if kind in ORDINARY or asked:
            continue
        same = groups and groups[-1].kind == kind and kind != "attempt_ended"
        if same:
            groups[-1] = Happened(kind, groups[-1].first, event, groups[-1].count + 1)
        else:
            groups.append(Happened(kind, event, event, 1))
    return groups


def state_of(events: list[dict[str, Any]]) -> str:
    """How a run stands by its last word."""
    words = [e for e in events if e["event"] in ("started", "finished", "stopped", "attempt_ended", "rewind")]
    if not words:
        return "starting"
    last = words[-1]
    return {"started": "running", "finished": "finished", "stopped": "stopped"}.get(
        last["event"], f"ended: {last['message']}"
    )
