"""The files in which a run tells of itself: their names, their version, and the only readers and writers of them. No torch.

Every line and file holds `schema_version`; one without it is of version 1, whose keys had other names. Readers here return
records in the form of today, without the version, and refuse those of a newer version. docs/run_folder.md lists all fields.

The files of JSON lines are only ever appended to: after a resume the steps that were lost appear again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recipe.base.errors import UserError
from recipe.base.files import append_json, parsed_lines, write_json
from recipe.base.settings import RunConfig

SCHEMA_VERSION = 2
VERSION_KEY = "schema_version"

ATTEMPTS, METRICS, EVENTS, EVALUATIONS = "attempts.jsonl", "metrics.jsonl", "events.jsonl", "evaluations.jsonl"
HELD_OUT_RESULTS, DOWNSTREAM_RESULTS = "evaluation.json", "results.json"
DOWNSTREAM = "downstream.jsonl"
REWIND, SUSPECT, LEFT = "rewind.json", "suspect.json", "left.json"
FAILURES, HEARTBEATS, STACKS = "failures", "heartbeats", "stacks"  # folders

# Version 1. Files of it are read where they lie; the next start renames the first one.
_ATTEMPTS_1 = "incarnations.jsonl"
_KEYS_1 = {"said": "message", "incarnation": "attempt"}
_EVENTS_1 = {"incarnation_ended": "attempt_ended"}
_FAILURE_NAMES = ("attempt", "incarnation")  # how files of failures/ begin: today, in version 1

# Kinds of a failure that explain an end; a rank that lost a peer or waited for one is a witness only.
CAUSES = ("user_error", "hang", "out_of_memory", "error", "corruption")

TAIL_BYTES = 8 << 20  # of metrics.jsonl, more than one line of it


def append_record(path: Path, facts: dict[str, Any]) -> None:
    """Append a line to a file of JSON lines."""
    append_json(path, {**facts, VERSION_KEY: SCHEMA_VERSION})


def write_record(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_json(path, {**facts, VERSION_KEY: SCHEMA_VERSION})


def current(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """A record as this version writes it, without its version; `record` itself may be changed.

    Args:
        path: of its file, for the message.

    Raises:
        UserError: a newer version has written it.
    """
    version = record.pop(VERSION_KEY, 1)
    if version == SCHEMA_VERSION:
        return record
    if version != 1:
        raise UserError(
            f"{path} has a record of {VERSION_KEY} {version}, and this version of the recipe reads those up to "
            f"{SCHEMA_VERSION}; read and resume this run with the version that wrote it"
        )
    record = {_KEYS_1.get(key, key): value for key, value in record.items()}
    if record.get("event") in _EVENTS_1:
        record["event"] = _EVENTS_1[record["event"]]
    return record


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None if there is no such file.

    Raises:
        UserError: a newer version has written it, or it is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; restore it or remove it") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} does not hold a JSON object; restore it or remove it")
    return current(record, path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines that `append_record` wrote, oldest first; none if there is no such file.

    Raises:
        UserError: a newer version has written one of them.
    """
    try:
        with open(path, "rb") as handle:
            return list(_records(handle, path))
    except FileNotFoundError:
        return []


def _records(lines: Iterable[bytes], path: Path) -> Iterator[dict[str, Any]]:
    return (current(record, path) for record in parsed_lines(lines))


def iterate_metrics(run_dir: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl as they were written, lost steps included; those that a kill or a full disk has cut are not."""
    path = Path(run_dir) / METRICS
    with open(path, "rb") as handle:
        yield from _records(handle, path)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The logged steps of a run in order, without those that a later start has gone back before."""
    rows: list[dict[str, Any]] = []
    for values in iterate_metrics(run_dir):
        while rows and rows[-1]["step"] >= values["step"]:
            rows.pop()
        rows.append(values)
    return rows


def last_metrics(run_dir: str | Path) -> dict[str, Any] | None:
    """The last whole line, without reading a file of weeks; None if there is none yet."""
    path = Path(run_dir) / METRICS
    if not path.exists():
        return None
    with open(path, "rb") as handle:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        handle.seek(start)
        lines = handle.read().splitlines(keepends=True)
    whole = lines[1:] if start else lines  # of the first there is only an end
    return next((values for line in reversed(whole) for values in _records([line], path)), None)


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """What happened, oldest first."""
    return read_records(Path(run_dir) / EVENTS)


def read_evaluations(run_dir: str | Path) -> list[dict[str, Any]]:
    """The held-out results during training, oldest first."""
    return read_records(Path(run_dir) / EVALUATIONS)


def read_downstream(run_dir: str | Path) -> list[dict[str, Any]]:
    """The results of downstream tasks during training, oldest first."""
    return read_records(Path(run_dir) / DOWNSTREAM)


def saved_checkpoints(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of the checkpoints that a run has saved since it began, oldest first."""
    saved: list[dict[str, Any]] = []
    for event in read_events(run_dir):
        if event["event"] in ("checkpoint", "imported", "branched"):
            saved.append(event)
        elif event["event"] == "started" and event["checkpoint"] is None:
            saved = []  # a rewind before the first checkpoint
    return saved


def read_attempts(run_dir: str | Path) -> list[dict[str, Any]]:
    """Each start of a run, oldest first; none if there was no start yet."""
    # A start may rename the old file between the first look and the second.
    for name in (ATTEMPTS, _ATTEMPTS_1, ATTEMPTS):
        if starts := read_records(Path(run_dir) / name):
            return [_with_current_settings(start) for start in starts]
    return []


def run_name(run_dir: Path) -> str:
    """What people call a run: its folder, or the one around it where it is only called `run`, as in the shipped configs."""
    path = run_dir.resolve()
    return path.parent.name if path.name == "run" and path.parent.name else path.name


def read_starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """Each start of a run: time, command, versions, run_config, ds_config.

    Raises:
        UserError: not a run folder, or one of a newer version.
    """
    starts = read_attempts(run_dir)
    if not starts:
        raise UserError(f"{run_dir} holds no run (no {ATTEMPTS}); {a_run_of(run_dir)}")
    return starts


def a_run_of(run_dir: str | Path) -> str:
    """What to give in place of a folder without a run: the only one below it, such as work/quickstart/run, if it has one."""
    inside = list(Path(run_dir).glob(f"*/{ATTEMPTS}"))
    return f"give its folder {inside[0].parent}" if len(inside) == 1 else "give the run_dir of a training run"


def append_attempt(run_dir: Path, facts: dict[str, Any]) -> int:
    """Record a start, by who holds the run's lock; a file of version 1 gets its name of today first.

    Returns:
        the number of the start, from 1.

    Raises:
        UserError: the folder holds files of both names.
    """
    path, old = run_dir / ATTEMPTS, run_dir / _ATTEMPTS_1
    if old.exists():
        if path.exists():
            raise UserError(
                f"{run_dir} holds both {path.name} and {old.name}: an older version of the recipe was started in it after this "
                f"one; move {old.name} out of the folder to go on with this version"
            )
        os.rename(old, path)
    append_record(path, facts)
    return len(read_attempts(run_dir))


def recorded_run_config(record: dict[str, Any]) -> RunConfig:
    """The run config of a start, or of a checkpoint's manifest, whatever version recorded it.

    Raises:
        UserError: it has settings that this version does not know.
    """
    values = _with_current_settings(record)["run_config"]
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise UserError(
            f"the run in {values.get('run_dir')} was recorded with settings that this version of the recipe does not know "
            f"({keys}); use the version that recorded it"
        ) from None


def _with_current_settings(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the names that keys of its run_config have in this version; `record` itself stays as it is."""
    settings = record.get("run_config")
    if not isinstance(settings, dict):
        return record
    settings = dict(settings)
    for name, section in settings.items():
        renamed: dict[str, str] = getattr(_section(name), "renamed", {})
        if isinstance(section, dict):
            settings[name] = {renamed.get(key, key): value for key, value in section.items()}
    return {**record, "run_config": settings}


def _section(name: str) -> Any:
    """The class of a section of the run config; None where this version has none of that name."""
    field = RunConfig.model_fields.get(name)
    return None if field is None else field.annotation


def failure_path(run_dir: Path, attempt: int, rank: int) -> Path:
    return run_dir / FAILURES / f"{_FAILURE_NAMES[0]}_{attempt:04d}_rank_{rank:05d}.json"


def failure_files(run_dir: Path, attempt: int) -> dict[int, Path]:
    """The files that ranks of an attempt have left, by rank."""
    paths = (p for name in _FAILURE_NAMES for p in (run_dir / FAILURES).glob(f"{name}_{attempt:04d}_rank_*.json"))
    return {int(path.stem.rpartition("_")[2]): path for path in paths}


def read_failures(run_dir: Path, attempt: int) -> list[dict[str, Any]]:
    """What ranks of an attempt knew of their own end."""
    records = [record for path in failure_files(run_dir, attempt).values() if (record := read_record(path)) is not None]
    return [{"witness": record["kind"] == "peer_lost", **record} for record in records]  # of an older start, too


def root_causes(failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of what `read_failures` returned, the records that explain the end, the earliest first."""
    causes = [record for record in failures if record["kind"] in CAUSES and not record["witness"]]
    return sorted(causes, key=lambda record: (record["time"], record["rank"]))


def given_budget(ds_raw: dict[str, Any]) -> float:
    """`recipe.kept_gib` of a ds_config as its file has it."""
    return float(ds_raw.get("recipe", {}).get("kept_gib", 0.0))


def with_kept_gib(ds_raw: dict[str, Any], gib: float) -> dict[str, Any]:
    """A ds_config JSON with another `recipe.kept_gib`."""
    return {**ds_raw, "recipe": {**ds_raw.get("recipe", {}), "kept_gib": gib}}


def ds_config_used(start: dict[str, Any]) -> dict[str, Any]:
    """The ds_config of a start with the budget that it had, which is lower than its file's after out of memory."""
    ds_raw: dict[str, Any] = start["ds_config"]
    return with_kept_gib(ds_raw, start["kept"]["budget_gib"]) if "kept" in start else ds_raw
