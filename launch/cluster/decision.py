"""What follows the end of an attempt. Nothing here reads a file or a clock: launch/supervise.py asks and does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from launch.cluster.incidents import Incident

MAX_BACKOFF_S = 300.0
BLAMED = ("killed", "hang", "error")  # kinds that count as a failure of the rank's host


class Outcome(Enum):
    """How an attempt ended."""

    FINISHED = "the schedule is done"
    STOPPED = "somebody asked it to stop"
    REFUSED = "its ranks refused to start and wrote nothing"
    FAILED = "anything else"


@dataclass(frozen=True)
class End:
    """The end of an attempt.

    Args:
        code: exit code of the launcher.
        began: the ranks have written that the attempt began.
        event: its last event of its own state (started, finished, stopped, rewind); empty without one.
        stop_asked: by a signal; or by a file or the time limit where no rank trained that could answer them.
    """

    code: int
    began: bool
    event: dict[str, Any]
    stop_asked: bool


def outcome_of(end: End) -> Outcome:
    if end.code == 0 and end.event.get("event") == "finished":
        return Outcome.FINISHED
    # A stop by a signal that nobody sent to this supervisor is one of the ranks alone, which start again.
    stopped = end.event.get("event") == "stopped" and end.event["why"] != "signal"
    if end.code != 2 and (end.stop_asked or stopped):
        return Outcome.STOPPED
    return Outcome.REFUSED if end.code == 2 and not end.began else Outcome.FAILED


def incident_in(end: End) -> Incident | None:
    """The incident that the end itself tells; None where records of the ranks must be read."""
    if not end.began:
        return Incident("unknown", "the ranks ended before the run began, and only the log says why")
    if end.event.get("event") in ("stopped", "rewind"):
        return Incident(end.event["event"], end.event["message"])
    return None


@dataclass(frozen=True)
class Rules:
    """What the user allows, and what the run is started with now.

    Args:
        micro_batch: of a rank.
        run_dir: where a user looks for the reasons of many failures.
    """

    run_dir: Path
    max_stalls: int
    backoff_s: float
    step_down_on_oom: bool
    micro_batch: int


@dataclass(frozen=True)
class Failure:
    """An incident with what bears on the next attempt.

    Args:
        code: exit code of the launcher.
        stalls: failures in a row without a new checkpoint before this one.
        advanced: there is a newer checkpoint than before the attempt.
        bad_hosts: hosts whose ranks compute other bits.
        no_spare: why the run cannot go on without those hosts, if it cannot.
        kept_gib: of the next attempt, where it keeps fewer results of recomputed layers for this failure's sake.
    """

    incident: Incident
    code: int
    stalls: int
    advanced: bool
    bad_hosts: frozenset[str] = frozenset()
    no_spare: str | None = None
    kept_gib: float | None = None


@dataclass(frozen=True)
class Decision:
    """What to do next: all that is set here, and then a restart, or the end where `give_up` says why."""

    stalls: int
    backoff_s: float = 0.0
    give_up: str | None = None
    leave_out: frozenset[str] = frozenset()
    step_down: bool = False
    kept_gib: float | None = None  # what the next attempt does by itself
    blame: int | None = None  # a rank


def decide(failure: Failure, rules: Rules) -> Decision:
    """What follows a failed attempt; `Outcome.FAILED` alone has such a choice."""
    incident = failure.incident
    rewound = incident.kind == "rewind"  # to an older checkpoint, which is progress
    stalls = 0 if failure.advanced or rewound else failure.stalls + 1
    if failure.code == 2 or incident.kind == "user_error":
        return Decision(stalls, give_up=f"not restarted: {incident.message}")
    if failure.kept_gib is not None:  # which has an end, at nothing kept: no stall
        stalls = 0 if failure.advanced else failure.stalls
        return Decision(stalls, min(MAX_BACKOFF_S, rules.backoff_s * 2**stalls), kept_gib=failure.kept_gib)
    if stalls > rules.max_stalls:
        why = f"{stalls} starts in a row ended without a new checkpoint, the last: {incident.message}"
        return Decision(stalls, give_up=f"{why}; look at the log and at events.jsonl in {rules.run_dir}")
    backoff_s = 0.0 if rewound else min(MAX_BACKOFF_S, rules.backoff_s * 2**stalls)
    if incident.kind == "out_of_memory" and rules.step_down_on_oom:
        if rules.micro_batch % 2:
            why = "out of memory with a micro-batch that cannot be halved; see the suggestions in the log"
            return Decision(stalls, give_up=why)
        return Decision(stalls, backoff_s, step_down=True)
    if incident.kind == "corruption":
        no_spare = None if failure.no_spare is None else _no_spare_sentence(failure)
        return Decision(stalls, backoff_s, give_up=no_spare, leave_out=failure.bad_hosts)
    return Decision(stalls, backoff_s, blame=incident.rank if incident.kind in BLAMED else None)


def _no_spare_sentence(failure: Failure) -> str:
    return (
        f"not restarted: {failure.incident.message}; {failure.no_spare}. Started again without that host, the run goes on "
        "from a checkpoint before the last good probe"
    )
