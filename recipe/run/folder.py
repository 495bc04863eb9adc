"""The folder of a run: what it was started with, whether it may be started or resumed here, and what happened in it.

docs/run_folder.md lists its files and their fields; `recipe.run.records` reads and writes them.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import recipe
from recipe.base.errors import UserError
from recipe.base.ranks import host_name, rank
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.settings import RunConfig, absolute
from recipe.run.checkpoint_files import (
    check_loadable,
    complete,
    find,
    no_checkpoint_left,
    read_manifest,
    step_of,
    topology_of,
)
from recipe.run.identity import EVALUATION, Identity, check_identity, differences
from recipe.run.job import Job
from recipe.run.locks import lock_file
from recipe.run.phases.recorded import data_facts, other_data, recorded_phases
from recipe.run.records import (
    ATTEMPTS,
    DOWNSTREAM,
    EVALUATIONS,
    EVENTS,
    HEARTBEATS,
    LEFT,
    METRICS,
    REWIND,
    STACKS,
    SUSPECT,
    append_attempt,
    failure_path,
    read_attempts,
    read_record,
    read_starts,
    recorded_run_config,
    saved_checkpoints,
    write_record,
)
from recipe.run.reports import Reports

LOCK, SUPERVISOR_LOCK, STOP = "lock", "supervisor.lock", "stop"  # files of a run folder
LOCK_PATIENCE_S = 15.0  # that a killed attempt's rank 0 may take to be gone
# What a resumed run may not change and still be the same run. The optimizer's settings are among them, since the
# checkpoint's would silently win. Model, tokenizer and tokens are compared by content, wherever they lie.
_FIXED = ("seed", "optimizer")
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pydantic")


@dataclass(frozen=True)
class Orders:
    """What earlier starts have left for the next one to do.

    Args:
        rewind: number, before_step, phase, sequences: go back before a spike, and past its data.
        good_until: step of the last good probe; one of the checkpoints since then may be corrupt.
        left_above: step of the checkpoint that was asked for by its name; younger ones are of another branch.
    """

    rewind: dict[str, Any] | None = None
    good_until: int | None = None
    left_above: int | None = None


NO_ORDERS = Orders()


class RunFolder:
    """Paths and records of one run.

    Args:
        attempt: number of this start, from 1.
    """

    def __init__(self, path: Path, attempt: int):
        self.path, self.attempt = path, attempt
        self.reports = Reports()

    @property
    def heartbeats(self) -> Path:
        return self.path / HEARTBEATS

    def stacks(self, of_rank: int) -> Path:
        return self.path / STACKS / f"attempt_{self.attempt:04d}_rank_{of_rank:05d}.txt"

    @property
    def stop_request(self) -> Path:
        return self.path / STOP

    def event(self, **facts: Any) -> None:
        """Append to events.jsonl."""
        self._report(EVENTS, {"time": time.time(), "attempt": self.attempt, **facts})

    def evaluation(self, **facts: Any) -> None:
        """Append to evaluations.jsonl: held-out results of a step."""
        self._report(EVALUATIONS, {"time": time.time(), "attempt": self.attempt, **facts})

    def downstream(self, **facts: Any) -> None:
        """Append to downstream.jsonl: results of downstream tasks of a step."""
        self._report(DOWNSTREAM, {"time": time.time(), "attempt": self.attempt, **facts})

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Append to metrics.jsonl: what is known of a logged step."""
        self._report(METRICS, {"step": step, "time": time.time(), **values})

    def _report(self, name: str, facts: dict[str, Any]) -> None:
        self.reports.append(self.path / name, facts)

    def record_failure(
        self,
        kind: str,
        message: str,
        *,
        rank: int,
        host: str,
        step: int | None = None,
        witness: bool = False,
        missing_gib: float | None = 0.0,
        phase: int = 0,
    ) -> None:
        """Leave word of a rank's failure for the supervisor; the first of a rank in an attempt is the one that stays.

        Args:
            witness: the rank tells of what others did, or did not do; its host is not to blame.
            missing_gib: of out_of_memory: what a step lacked, 0 where that is not known; None: not in a step, or not of
                the device, so that keeping fewer results would not help.
            phase: of the run, in which its budget for kept results is lowered.
        """
        path = failure_path(self.path, self.attempt, rank)
        if path.exists():  # what a rank knew of its own end explains more than what others say of it later
            return
        facts = {"kind": kind, "rank": rank, "host": host, "step": step, "message": message, "witness": witness}
        if kind == "out_of_memory":
            facts |= {"missing_gib": missing_gib, "phase": phase}
        write_record(path, {"time": time.time(), **facts})

    def record_own_failure(self, kind: str, message: str, **facts: Any) -> None:
        """`record_failure` of this process's rank."""
        self.record_failure(kind, message, rank=rank(), host=host_name(), **facts)

    def order_rewind(self, number: int, before_step: int, phase: int, sequences: int, message: str) -> None:
        """Have the next attempt go back to the last checkpoint before a step, and past a phase's data up to `sequences`."""
        order = {"number": number, "before_step": before_step, "phase": phase, "sequences": sequences}
        write_record(self.path / REWIND, {**order, "message": message})

    def order_suspects(self, good_until: int, message: str) -> None:
        """Have the next attempt set aside all checkpoints since the last good probe and go on from the one before."""
        write_record(self.path / SUSPECT, {"good_until": good_until, "message": message})

    def order_left(self, above: int) -> None:
        """Have this and later attempts go on from the checkpoint of a step, and from no younger one of today.

        A rewind that was ordered on the branch that is left is off.
        """
        write_record(self.path / LEFT, {"above": above})
        (self.path / REWIND).unlink(missing_ok=True)

    def checkpoints_are_set_aside(self) -> None:
        """The orders to do so are carried out."""
        for name in (SUSPECT, LEFT):
            (self.path / name).unlink(missing_ok=True)


def read_orders(run_dir: Path) -> Orders:
    """The orders that lie in a run folder.

    Raises:
        UserError: a newer version has left one of them.
    """
    rewind, suspect, left = (read_record(run_dir / name) or {} for name in (REWIND, SUSPECT, LEFT))
    return Orders(rewind or None, suspect.get("good_until"), left.get("above"))


def left_by(checkpoint: Path, orders: Orders) -> tuple[str, str, str] | None:
    """By which order a checkpoint is not gone on from: suffix, event, and what to say."""
    step, rewind = step_of(checkpoint), orders.rewind
    if orders.left_above is not None and step > orders.left_above:
        return "left", "branch_left", f"{checkpoint.name} is of a branch that was left after step {orders.left_above:,}"
    if rewind is None or step < rewind["before_step"]:
        return None
    try:
        has_seen_it = read_manifest(checkpoint)["train_state"]["rewinds"] >= rewind["number"]
    except UserError:
        return None  # damaged, as will be seen
    return None if has_seen_it else ("rewound", "checkpoint_rewound", f"{checkpoint.name} is of a spike")


def next_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that the next start goes on from, unless it is damaged; None: from the beginning.

    Raises:
        UserError: a newer version has left an order.
    """
    orders = read_orders(run_dir)
    last = math.inf if orders.good_until is None else orders.good_until
    checkpoints = [path for path in complete(run_dir / "checkpoints") if step_of(path) <= last]
    return next((path for path in reversed(checkpoints) if left_by(path, orders) is None), None)


def check_run_folder(job: Job, *, resumes: bool) -> list[str]:
    """Refuse to mix two runs in one folder.

    Returns:
        what differs from the run's last start and may, a sentence each: settings, ranks and batch, the folder itself.

    Raises:
        UserError: the folder holds a run and is not to be resumed, or what may not change differs.
    """
    run = job.run
    if not (starts := read_attempts(run.run_dir)):
        if checkpoints := complete(run.run_dir / "checkpoints"):
            raise UserError(
                f"{run.run_dir} holds {checkpoints[-1].name} but no record of the run that saved it ({ATTEMPTS}); "
                "copy the whole run folder, or choose another run_dir"
            )
        return []
    origin = starts[0].get("began_from")
    if origin is not None and not complete(run.run_dir / "checkpoints") and not saved_checkpoints(run.run_dir):
        raise UserError(
            f"{run.run_dir} was to begin from {origin['from']}, and that ended before its first checkpoint; remove "
            f"{run.run_dir} and begin it from there again"
        )
    if not resumes:
        raise UserError(
            f"{run.run_dir} already holds a run; add --resume auto to continue it or choose another run_dir"
        )
    start = last_start(run.run_dir)
    last, begun = recorded_phases(start), phase_reached(run.run_dir)
    if begun >= len(job.phases):
        raise UserError(
            f"{run.run_dir} is in phase {begun} of its run, and the run config has {len(job.phases)}; give it the phases that have "
            "begun, or choose another run_dir"
        )
    check_identity(
        start["identity"],
        _trained_on(job),
        run.run_dir,
        "restore them, or branch into another run_dir (recipe/branch.py)",
    )
    if problems := differences(_fixed(last, begun), _fixed(job.phases, begun)):
        raise UserError(
            f"{run.run_dir} holds a run with other settings: {'; '.join(problems)}; restore them or choose another run_dir"
        )
    before = recorded_run_config(start)
    changes = differences(_without_paths(before), _without_paths(job.config))
    if moved := other_data(data_facts(start, job), job, begun):
        raise UserError(f"{run.run_dir}: {'; '.join(changes)}; so {moved}; restore them or choose another run_dir")
    changes += differences(*({EVALUATION: identity.get(EVALUATION)} for identity in (start["identity"], job.identity)))
    changes += [f"ds_config {change}" for change in differences(start["ds_config"], job.ds_config)]
    if before.run_dir != run.run_dir.absolute():
        changes.append(
            f"the run folder is {run.run_dir.absolute()}, was {before.run_dir}: moved, or a copy of that run"
        )
    return changes


def phase_reached(run_dir: Path) -> int:
    """The phase that the next start goes on in, as far as is known before it."""
    checkpoint = next_checkpoint(run_dir)
    if checkpoint is None:
        return 0
    try:
        return int(read_manifest(checkpoint)["train_state"].get("phase", 0))
    except UserError:
        return 0  # damaged, as will be seen


def check_resume(job: Job, resume: str) -> str | None:
    """Refuse a resume that could not load its checkpoint, before anything starts.

    What an order of an earlier start, or damage, will set aside is left to `CheckpointStore.choose`.

    Returns:
        the checkpoint; None where that is seen only at the start, or nothing has been saved.

    Raises:
        UserError: no such checkpoint, or one of other inputs, or of ranks and sizes that it must be resharded for.
    """
    run_dir = job.run.run_dir
    folder = run_dir / "checkpoints"
    if resume == "auto":
        checkpoints = complete(folder)
        if read_orders(run_dir) != NO_ORDERS:
            return None
        if not checkpoints:
            if saved := saved_checkpoints(run_dir):
                raise no_checkpoint_left(folder, saved[-1]["step"])
            return None
        path = checkpoints[-1]
    else:
        path = find(folder, None if resume == "latest" else resume)
    try:
        manifest = read_manifest(path)
    except UserError:
        if resume == "auto":
            return None
        raise
    check_identity(manifest["identity"], _trained_on(job), path, "restore them, or resume from another checkpoint")
    check_loadable(path, manifest["topology"], topology_of(job.ds))
    return str(path.name)


def _trained_on(job: Job) -> Identity:
    """What may not change; what a run is evaluated on may, and is said."""
    return {part: value for part, value in job.identity.items() if part != EVALUATION}


def _fixed(phases: Sequence[ResolvedPhase], begun: int) -> dict[str, Any]:
    """What may not change of a run: seed, optimizer, and the data and positions of the phases up to `begun`.

    What is done with damaged data is decided when there are some.
    """
    first, *others = (_fixed_in_phase(phase) for phase in phases[: begun + 1])
    run = phases[0].run.model_dump(mode="json", include=set(_FIXED))
    return {**run, **first, "phases": {str(number): phase for number, phase in enumerate(others, start=1)}}


def _fixed_in_phase(phase: ResolvedPhase) -> dict[str, Any]:
    return {
        "data": phase.run.data.model_dump(mode="json", exclude={"tokens", "on_damage", "max_damaged_share"}),
        "rope_parameters": phase.shape.model_dump(mode="json")["rope_parameters"],
    }


def _without_paths(run: RunConfig) -> dict[str, Any]:
    """A run config as JSON, without the paths of what is compared by content."""
    paths: Any = {
        "run_dir": True, "model": True, "tokenizer": True, "data": {"tokens"},
        "evaluation": {"tokens": True, "downstream": {"data", "tasks_path"}},
    }  # fmt: skip
    values = run.model_dump(mode="json", exclude=paths)
    for phase in values["phases"]:
        phase["data"].pop("tokens", None)
    return {**values, "phases": {str(number): phase for number, phase in enumerate(values["phases"])}}


def versions() -> dict[str, Any]:
    return {"code_version": recipe.__version__, "packages": {name: version(name) for name in _PACKAGES}}


def provenance(job: Job) -> dict[str, Any]:
    """What a checkpoint's manifest says of the run that saved it."""
    return {
        "run_config": absolute(job.config).model_dump(mode="json"),
        "ds_config": job.ds_config,
        "data_order": job.data.facts,
        "identity": job.identity,
        **versions(),
    }


_lock: IO[str] | None = None  # held until this process ends


def lock_run_folder(folder: Path) -> None:
    """Hold the folder until this process ends, so that no two attempts write to it; by rank 0.

    Raises:
        UserError: another process holds it, or its file system has no locks.
    """
    global _lock
    _lock = lock_file(folder / LOCK, subject=folder, patience_s=LOCK_PATIENCE_S)


def record_start(job: Job, **more: Any) -> int:
    """Append this start to attempts.jsonl: when, where, by which command, code, packages, configs and inputs.

    Returns:
        its number, from 1.
    """
    facts = {"time": time.time(), "command": sys.argv, "folder": os.getcwd(), **provenance(job), **more}
    return append_attempt(job.run.run_dir, facts)


def last_start(folder: str | Path) -> dict[str, Any]:
    """What `record_start` wrote last.

    Raises:
        UserError: not a run folder, or one of an older version.
    """
    start = read_starts(folder)[-1]
    if "identity" not in start:
        raise UserError(
            f"{folder} was last started by an older version of the recipe, which did not record what the run is made of; "
            "go on with that version, or export there and begin a new run from the export (recipe/import_model.py)"
        )
    return start


def load_run_folder(folder: str | Path) -> tuple[RunConfig, dict[str, Any]]:
    """The run config and ds_config JSON that a run folder was last started with.

    Raises:
        UserError: not a run folder, or one of an older version.
    """
    start = last_start(folder)
    return recorded_run_config(start), start["ds_config"]
