"""The folder of a run: what it was started with, and whether it may be started or resumed here."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import recipe
from recipe.base.errors import UserError
from recipe.base.settings import RunConfig

Resume = Literal["never", "auto"]
# What a resumed run may change and still be the same run. The optimizer's settings are not among them: the
# checkpoint's would silently win.
_FREE_TO_CHANGE = {"run_dir", "logging", "checkpoint", "schedule", "routing", "compute"}
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pydantic")


def check_run_folder(run: RunConfig, resume: Resume) -> list[str]:
    """Refuse to mix two runs in one folder.

    Returns:
        the sections of the run config that differ from the run's last start, allowed ones.

    Raises:
        UserError: the folder holds a run and `resume` is "never", or what may not change differs.
    """
    if not _starts(run.run_dir).exists():
        return []
    if resume == "never":
        raise UserError(
            f"{run.run_dir} already holds a run; add --resume auto to continue it or choose another run_dir"
        )
    last = load_run_folder(run.run_dir)[0]
    before = last.model_dump(mode="json")
    changed = sorted(key for key, value in run.model_dump(mode="json").items() if before[key] != value)
    forbidden = [key for key in changed if key not in _FREE_TO_CHANGE]
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


def record_start(run: RunConfig, ds_raw: dict[str, Any]) -> None:
    """Append this start to incarnations.jsonl: when, by which command, code, packages and configs."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    start = {
        "time": time.time(),
        "command": sys.argv,
        "code_version": recipe.__version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "run_config": run.model_dump(mode="json"),
        "ds_config": ds_raw,
    }
    with open(_starts(run.run_dir), "a", encoding="utf-8") as handle:
        handle.write(json.dumps(start) + "\n")


def load_run_folder(folder: str | Path) -> tuple[RunConfig, dict[str, Any]]:
    """The run config and ds_config JSON that a run folder was last started with.

    Raises:
        UserError: not a run folder.
    """
    path = _starts(Path(folder))
    if not path.exists():
        raise UserError(f"{folder} holds no run (no {path.name}); give the run_dir of a training run")
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return RunConfig.model_validate(last["run_config"]), last["ds_config"]


def _starts(folder: Path) -> Path:
    return folder / "incarnations.jsonl"
