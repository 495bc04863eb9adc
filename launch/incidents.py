"""Why an incarnation of a run ended, from what its ranks left behind and the launcher's exit code."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.base.heartbeats import Heartbeat, read_heartbeats
from recipe.base.run_records import last_metrics

# In the order in which they explain an end; a rank that lost a peer is a witness only.
CAUSES = ("user_error", "hang", "out_of_memory", "error")


@dataclass(frozen=True)
class Incident:
    """The end of an incarnation."""

    kind: str  # one of CAUSES, killed, peer_lost, or unknown
    said: str
    rank: int | None = None
    host: str | None = None


def incident_of(run_dir: Path, incarnation: int, code: int) -> Incident:
    """What is known of an incarnation that ended with a code other than 0."""
    records = _records(run_dir, incarnation)
    for kind in CAUSES:
        ours = sorted((r for r in records if r["kind"] == kind), key=lambda r: r["time"])
        if ours:
            return Incident(kind, ours[0]["said"], ours[0]["rank"], ours[0]["host"])
    beats = read_heartbeats(run_dir / "heartbeats", incarnation)
    silent = [beats[number] for number in sorted(beats) if number not in {r["rank"] for r in records}]
    name = signal_of(code)
    if silent and (records or name):
        how = f"killed by {name}" if name else "gone without a word"
        return Incident("killed", f"{_named(silent)} {how}", silent[0].rank, silent[0].host)
    if records:
        return Incident("peer_lost", f"connections were lost: {records[0]['said']}")
    return Incident("unknown", f"the launcher ended with code {code}")


def signal_of(code: int) -> str | None:
    """Name of the signal in an exit code, as Popen (-9), a shell (137) or Python's sys.exit(-9) (247) tell it."""
    for number in (-code, code - 128, 256 - code):
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGINT):
            return signal.Signals(number).name
    return None


def last_step(run_dir: Path, incarnation: int, since: float) -> int | None:
    """The last step that is known to be done by an incarnation that began at `since` (seconds of the epoch)."""
    beats = read_heartbeats(run_dir / "heartbeats", incarnation)
    steps = [beat.step - 1 for beat in beats.values()]  # the one it works on is not done
    logged = last_metrics(run_dir)
    if logged is not None and logged["time"] >= since:
        steps.append(logged["step"])
    return max(steps, default=None)


def _records(run_dir: Path, incarnation: int) -> list[dict[str, Any]]:
    files = (run_dir / "failures").glob(f"incarnation_{incarnation:04d}_rank_*.json")
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def _named(beats: list[Heartbeat]) -> str:
    return ", ".join(f"rank {beat.rank} on {beat.host}" for beat in beats[:8])
