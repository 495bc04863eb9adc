"""Why an attempt of a run ended, from what its ranks left behind and the launcher's exit code."""

from __future__ import annotations

import re
import signal
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.run.heartbeats import Heartbeat, read_heartbeats
from recipe.run.records import last_metrics, read_failures, root_causes


@dataclass(frozen=True)
class Incident:
    """The end of an attempt. Rank and host are those to blame; None where nothing tells one from the others."""

    kind: str  # one of CAUSES of recipe/run/records.py, killed, peer_lost, or unknown
    message: str
    rank: int | None = None
    host: str | None = None
    ranks: tuple[int, ...] = ()  # of corruption: all that compute other bits


def incident_of(run_dir: Path, attempt: int, code: int) -> Incident:
    """What is known of an attempt that ended with a code other than 0: its earliest cause."""
    records = sorted(read_failures(run_dir, attempt), key=lambda r: (r["time"], r["rank"]))
    beats = read_heartbeats(run_dir / "heartbeats", attempt)
    ranks = beats.keys() | {r["rank"] for r in records}
    if causes := root_causes(records):
        return _of_cause(causes, ranks)
    witnesses = {r["rank"] for r in records}
    silent = [beats[number] for number in sorted(beats) if number not in witnesses]
    waited = next((r for r in records if r["kind"] == "hang"), None)
    name = signal_of(code)
    if silent and (records or name):
        return _of_silent(silent, ranks, waited, name)
    if waited is not None:
        return Incident("hang", f"ranks waited for each other: {waited['message']}")
    if records:
        return Incident("peer_lost", f"connections were lost: {records[0]['message']}")
    return Incident("unknown", "the ranks left no record, and only the log says why")


def _of_cause(causes: list[dict[str, Any]], ranks: Set[int]) -> Incident:
    """The earliest, with its rank unless that is no different from the others."""
    first = causes[0]
    if first["kind"] == "user_error":
        return Incident("user_error", first["message"], first["rank"], first["host"])
    alike = [r for r in causes if r["kind"] == first["kind"] and _signature(r) == _signature(first)]
    if first["kind"] == "corruption":
        return Incident("corruption", first["message"], first["rank"], first["host"], tuple(r["rank"] for r in alike))
    # All ranks, whatever they have: the program, the data or the file system. Ranks of several hosts of which it is said
    # at once that they hold up the others: what they have in common, such as the network.
    if len(ranks) > 1 and {r["rank"] for r in alike} == ranks:
        return Incident(first["kind"], f"all {len(ranks)} ranks alike: {first['message']}")
    if first["kind"] == "hang" and len({r["host"] for r in alike}) > 1:
        return Incident("hang", first["message"])
    return Incident(first["kind"], first["message"], first["rank"], first["host"])


def _of_silent(silent: list[Heartbeat], ranks: Set[int], waited: dict[str, Any] | None, name: str | None) -> Incident:
    """Ranks that left no word were killed, or are what the others waited for; several hosts' share no blame."""
    kind = "killed" if waited is None else "hang"
    how = f"killed by {name}" if name else "ended without a message"
    if len(silent) == len(ranks) > 1:
        return Incident(kind, f"all {len(ranks)} ranks {how}, alike: {_named(silent)}")
    message = f"{_named(silent)} {how}" + (f"; others say: {waited['message']}" if waited is not None else "")
    if len({beat.host for beat in silent}) > 1:
        return Incident(kind, message)
    return Incident(kind, message, silent[0].rank, silent[0].host)


def _signature(record: dict[str, Any]) -> str:
    """What a record says, without the numbers in which ranks differ."""
    return re.sub(r"\d+", "#", record["message"])


def signal_of(code: int) -> str | None:
    """Name of the signal in an exit code, as Popen (-9), a shell (137) or Python's sys.exit(-9) (247) tell it."""
    for number in (-code, code - 128, 256 - code):
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGINT):
            return signal.Signals(number).name
    return None


def last_step(run_dir: Path, attempt: int, since: float) -> int | None:
    """The last step that is known to be done by an attempt that began at `since` (seconds of the epoch)."""
    beats = read_heartbeats(run_dir / "heartbeats", attempt)
    steps = [beat.step - 1 for beat in beats.values()]  # the one it works on is not done
    logged = last_metrics(run_dir)
    if logged is not None and logged["time"] >= since:
        steps.append(logged["step"])
    return max(steps, default=None)


def _named(beats: list[Heartbeat]) -> str:
    return ", ".join(f"rank {beat.rank} on {beat.where}" for beat in beats[:8])
