"""The folder of a run: what it was started with, whether it may be started or resumed here, and what happened in it.

incarnations.jsonl  each start: command, code, packages, configs
metrics.jsonl       each logged step
evaluations.jsonl   held-out loss of each source, every so many steps
events.jsonl        what happened: checkpoints, skipped steps, rewinds, mitigations, failures
failures/           what a rank knew of its own end, for whoever starts the run again
heartbeats/ stacks/ where each rank is, and was when it hung
lock                held by rank 0 of the incarnation that runs
supervisor.lock     held by the launch/train.sh that keeps the run going
stop                made by a person or the supervisor: save and end
rewind.json         the order to go back before a spike
suspect.json        the order to set aside what was trained since the last good probe
"""

from __future__ import annotations

import json
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import recipe
from recipe.base.checkpoint_files import SUSPECT
from recipe.base.errors import UserError
from recipe.base.files import append_json, read_json_lines, write_json
from recipe.base.locks import lock_file
from recipe.base.ranks import rank
from recipe.base.run_records import read_starts
from recipe.base.settings import RunConfig

LOCK, SUPERVISOR_LOCK, STOP = "lock", "supervisor.lock", "stop"  # files of a run folder
LOCK_PATIENCE_S = 15.0  # that a killed incarnation's rank 0 may take to be gone
# What a resumed run may change and still be the same run. The optimizer's settings are not among them: the
# checkpoint's would silently win.
_FREE_TO_CHANGE = {"run_dir", "logging", "checkpoint", "schedule", "routing", "compute", "numerics", "watch",
                   "evaluation"}  # fmt: skip
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pydantic")


class RunFolder:
    """Paths and records of one run.

    Args:
        incarnation: number of this start, from 1.
    """

    def __init__(self, path: Path, incarnation: int):
        self.path, self.incarnation = path, incarnation

    @property
    def heartbeats(self) -> Path:
        return self.path / "heartbeats"

    def stacks(self, of_rank: int) -> Path:
        return self.path / "stacks" / f"incarnation_{self.incarnation:04d}_rank_{of_rank:05d}.txt"

    @property
    def stop_request(self) -> Path:
        return self.path / STOP

    def event(self, **facts: Any) -> None:
        """Append to events.jsonl."""
        append_json(self.path / "events.jsonl", {"time": time.time(), "incarnation": self.incarnation, **facts})

    def evaluation(self, **facts: Any) -> None:
        """Append to evaluations.jsonl: held-out results of a step."""
        append_json(self.path / "evaluations.jsonl", {"time": time.time(), "incarnation": self.incarnation, **facts})

    def record_failure(
        self, kind: str, said: str, *, rank: int, host: str, step: int | None = None, witness: bool = False
    ) -> None:
        """Leave word of a rank's failure for the supervisor; at most one per rank and incarnation.

        Args:
            witness: the rank tells of what others did, or did not do; its host is not to blame.
        """
        path = self.path / "failures" / f"incarnation_{self.incarnation:04d}_rank_{rank:05d}.json"
        facts = {"kind": kind, "rank": rank, "host": host, "step": step, "said": said, "witness": witness}
        write_json(path, {"time": time.time(), **facts})

    def record_own_failure(self, kind: str, said: str, *, witness: bool = False) -> None:
        self.record_failure(kind, said, rank=rank(), host=socket.gethostname(), witness=witness)

    def order_rewind(self, number: int, before_step: int, sequences: int, said: str) -> None:
        """Have the next incarnation go back to the last checkpoint before a step, and past the data up to `sequences`."""
        order = {"number": number, "before_step": before_step, "sequences": sequences, "said": said}
        write_json(self.path / "rewind.json", order)

    def order_suspects(self, good_until: int, said: str) -> None:
        """Have the next incarnation set aside all checkpoints since the last good probe and go on from the one before."""
        write_json(self.path / SUSPECT, {"good_until": good_until, "said": said})

    def suspects_are_set_aside(self) -> None:
        (self.path / SUSPECT).unlink(missing_ok=True)

    def rewind_order(self) -> dict[str, Any] | None:
        path = self.path / "rewind.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def suspect_order(run_dir: Path) -> int | None:
    """The step of the last good probe, if checkpoints since then are to be set aside: one of them may be corrupt."""
    path = run_dir / SUSPECT
    return json.loads(path.read_text(encoding="utf-8"))["good_until"] if path.exists() else None


def check_run_folder(run: RunConfig, resumes: bool) -> list[str]:
    """Refuse to mix two runs in one folder.

    Returns:
        the sections of the run config that differ from the run's last start, allowed ones.

    Raises:
        UserError: the folder holds a run and is not to be resumed, or what may not change differs.
    """
    if not _starts(run.run_dir).exists():
        return []
    if not resumes:
        raise UserError(
            f"{run.run_dir} already holds a run; add --resume auto to continue it or choose another run_dir"
        )
    last = load_run_folder(run.run_dir)[0]
    before = last.model_dump(mode="json")
    changed = sorted(key for key, value in run.model_dump(mode="json").items() if before[key] != value)
    forbidden = [key for key in changed if key not in _FREE_TO_CHANGE and not _only_on_damage(key, last, run)]
    if forbidden:
        raise UserError(
            f"{run.run_dir} holds a run with other settings in {', '.join(forbidden)}; "
            "restore them or choose another run_dir"
        )
    mixture, planned = run.data.mixture, last.schedule.total_tokens
    if planned != run.schedule.total_tokens and (mixture.max_epochs is not None or mixture.anneal is not None):
        raise UserError(
            f"schedule.total_tokens changes from {planned:,} to {run.schedule.total_tokens:,}, and with it which data "
            "come next, since data.mixture has max_epochs or anneal; restore it or choose another run_dir"
        )
    return changed


def _only_on_damage(section: str, last: RunConfig, run: RunConfig) -> bool:
    """Whether the data differ in what is done with damage alone, which may be decided when there is some."""
    return section == "data" and last.data.model_copy(update={"on_damage": run.data.on_damage}) == run.data


def versions() -> dict[str, Any]:
    return {"code_version": recipe.__version__, "packages": {name: version(name) for name in _PACKAGES}}


_lock: IO[str] | None = None  # held until this process ends


def lock_run_folder(folder: Path) -> None:
    """Hold the folder until this process ends, so that no two incarnations write to it; by rank 0.

    Raises:
        UserError: another process holds it, or its file system has no locks.
    """
    global _lock
    _lock = lock_file(folder / LOCK, subject=folder, patience_s=LOCK_PATIENCE_S)


def record_start(run: RunConfig, ds_raw: dict[str, Any]) -> int:
    """Append this start to incarnations.jsonl: when, by which command, code, packages and configs; returns its number."""
    start = {
        "time": time.time(),
        "command": sys.argv,
        **versions(),
        "run_config": run.model_dump(mode="json"),
        "ds_config": ds_raw,
    }
    append_json(_starts(run.run_dir), start)
    return len(read_json_lines(_starts(run.run_dir)))


def load_run_folder(folder: str | Path) -> tuple[RunConfig, dict[str, Any]]:
    """The run config and ds_config JSON that a run folder was last started with.

    Raises:
        UserError: not a run folder.
    """
    starts = read_starts(folder)
    return RunConfig.model_validate(starts[-1]["run_config"]), starts[-1]["ds_config"]


def _starts(folder: Path) -> Path:
    return folder / "incarnations.jsonl"
